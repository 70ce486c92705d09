# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.jacobian import jacobian_determinant

SIZE = (6, 5, 8)


def linear_field(matrix: np.ndarray, size=SIZE) -> torch.Tensor:
    """Displacement ``matrix @ x`` at every voxel x, (1, 3, *size) float64."""
    return torch.from_numpy(np.einsum("ca,aijk->cijk", matrix, np.indices(size, dtype=np.float64)))[None]


@pytest.mark.parametrize(("scale", "determinant"), [(0.1, 1.331), (-0.3, 0.343), (-1.2, -0.008), (0.0, 1.0)])
def test_uniform_scaling_changes_the_volume_by_the_cube(scale, determinant):
    result = jacobian_determinant(linear_field(scale * np.eye(3)))

    torch.testing.assert_close(result, torch.full((1, 4, 3, 6), determinant, dtype=torch.float64))


def test_unequal_scaling_with_shear_has_the_product_of_the_scales():
    upper = np.array([[0.2, 0.7, -0.4], [0, -0.5, 0.9], [0, 0, 0.3]])

    result = jacobian_determinant(linear_field(upper))

    torch.testing.assert_close(result, torch.full_like(result, 1.2 * 0.5 * 1.3))


def test_a_rotation_and_a_translation_keep_the_volume():
    angle = 0.6
    about_axis_2 = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shift = torch.tensor([3.0, -2, 5]).reshape(3, 1, 1, 1)

    result = jacobian_determinant(linear_field(about_axis_2 - np.eye(3)) + shift)

    torch.testing.assert_close(result, torch.ones_like(result))


def test_each_voxel_of_a_rough_field_equals_the_determinant_of_its_gradient():
    ddf = torch.randn(2, 3, *SIZE, dtype=torch.float64)

    result = jacobian_determinant(ddf)

    gradient = np.stack(np.gradient(ddf.numpy(), axis=(2, 3, 4)))  # (axis, B, component, I, J, K)
    slow = np.linalg.det(np.moveaxis(gradient, (2, 0), (-2, -1)) + np.eye(3))
    torch.testing.assert_close(result, torch.from_numpy(slow[:, 1:-1, 1:-1, 1:-1]))


def test_the_determinant_follows_the_precision_of_the_field_but_never_below_float32():
    ddf = torch.randn(1, 3, *SIZE)

    types = [jacobian_determinant(ddf.to(dtype)).dtype for dtype in (torch.float16, torch.float32, torch.float64)]

    assert types == [torch.float32, torch.float32, torch.float64]


def test_the_gradient_is_right_so_that_foldings_can_be_penalised():
    ddf = torch.randn(1, 3, 3, 4, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(jacobian_determinant, ddf)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 8, 8, 8), (1, 2, 8, 8, 8), (1, 3, 8, 2, 8)])
def test_a_field_without_three_axes_components_or_voxels_is_refused(shape):
    with pytest.raises(ValueError, match=r"displacement field \(B, 3, I, J, K\) of at least 3 voxels"):
        jacobian_determinant(torch.zeros(shape))


def test_golden_jacobian_determinant(golden_dir):
    golden = np.load(golden_dir / "learn2reg_metrics.npz")
    ddf = torch.from_numpy(golden["displacement"]).movedim(-1, 0)[None]

    result = jacobian_determinant(ddf)[0, 1:-1, 1:-1, 1:-1]

    np.testing.assert_allclose(result.numpy(), golden["jacobian_determinant"], rtol=1e-6, atol=1e-6)
