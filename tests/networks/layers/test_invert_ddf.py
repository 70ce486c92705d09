# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.invert_ddf import invert_ddf
from monai_reg_ext.networks.layers.warp import warp

SIZE = (16, 22, 18)


def linear_field(matrix, size=SIZE):
    """Displacement ``matrix @ y - y`` of y, the voxel counted from the middle of the grid."""
    centred = np.moveaxis(np.indices(size), 0, -1) - (np.array(size) - 1) / 2
    return torch.from_numpy(np.moveaxis(centred @ (matrix - np.eye(3)).T, -1, 0)).float()[None]


def test_a_linear_field_is_inverted_as_its_matrix(interior):
    matrix = np.eye(3) + np.array([[0.1, -0.1, 0.05], [0.1, -0.15, 0], [0, 0.1, 0.2]])

    inverse = invert_ddf(linear_field(matrix))

    expected = linear_field(np.linalg.inv(matrix))
    torch.testing.assert_close(interior(inverse, 5), interior(expected, 5), rtol=0, atol=2e-3)


def test_the_inverse_undoes_a_smooth_field_from_both_sides(smooth_field, interior):
    ddf = smooth_field(SIZE, 2.0)

    inverse = invert_ddf(ddf)

    # no residual on this side; on the other, linear interpolation of the inverse stands between
    assert compose_ddf(ddf, inverse).norm(dim=1).max() < 1.1e-4
    assert interior(compose_ddf(inverse, ddf), 2).abs().max() < 0.1
    assert ddf.abs().max() > 1.9


def test_the_residual_shrinks_with_every_step(smooth_field):
    ddf = smooth_field(SIZE, 2.0)

    residuals = [compose_ddf(ddf, invert_ddf(ddf, steps, 1e-5)).abs().mean() for steps in (0, 1, 2)]

    assert all(after < 0.8 * before for before, after in pairwise(residuals))


def test_a_translation_is_inverted_in_every_voxel():
    ddf = torch.tensor([[1.5, -2, 0.25], [0, 3, -1]]).view(2, 3, 1, 1, 1).expand(2, 3, 5, 6, 7)

    torch.testing.assert_close(invert_ddf(ddf), -ddf)


def test_items_of_a_batch_are_inverted_as_if_alone(smooth_field):
    first, second = smooth_field(SIZE, 2.0), smooth_field(SIZE, 1.0, seed=3)

    both = invert_ddf(torch.cat([first, second]))

    assert torch.equal(both, torch.cat([invert_ddf(first), invert_ddf(second)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_inverse_has_the_type_of_the_field(dtype, smooth_field):
    ddf = smooth_field((7, 9, 8), 1.0).to(dtype)

    inverse = invert_ddf(ddf)

    assert inverse.dtype == dtype
    torch.testing.assert_close(inverse.float(), invert_ddf(ddf.float()), rtol=0, atol=3e-3)


def test_the_gradient_is_that_of_fixed_point_iteration(smooth_field):
    ddf = smooth_field((7, 9, 8), 0.8).requires_grad_()
    weights = torch.randn(ddf.shape, generator=torch.Generator().manual_seed(1))
    twin = -ddf
    for _ in range(60):
        twin = -warp(ddf, twin)

    inverse = invert_ddf(ddf)

    torch.testing.assert_close(inverse, twin, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad((inverse * weights).sum(), ddf)
    (expected,) = torch.autograd.grad((twin * weights).sum(), ddf)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("slope", [-1.0, -1.5])
def test_the_gradient_stays_finite_where_the_field_folds(slope):
    ddf = torch.zeros(1, 3, 9, 6, 7)
    ddf[0, 0] = slope * (torch.arange(9.0) - 4).clamp(-2, 2)[:, None, None]
    ddf.requires_grad_()

    (gradient,) = torch.autograd.grad(invert_ddf(ddf).square().sum(), ddf)

    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_without_need_of_a_gradient_there_is_none(smooth_field):
    ddf = smooth_field((7, 9, 8), 0.8).requires_grad_()

    with torch.no_grad():
        assert not invert_ddf(ddf).requires_grad
    assert invert_ddf(ddf).requires_grad
