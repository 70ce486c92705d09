# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import WarpPoints, WarpPointsd, ddf_to_itk_field, voxel_to_mm


@pytest.fixture
def ddf(fixed_affine, fixed_size, smooth_ddf) -> MetaTensor:
    return MetaTensor(smooth_ddf(fixed_size), affine=fixed_affine)


def test_points_between_voxels_move_as_simpleitk_moves_them(ddf, fixed_affine, fixed_size, to_sitk):
    points = voxel_to_mm(1 + torch.rand(40, 3) * (torch.tensor(fixed_size) - 3), fixed_affine)

    moved = WarpPoints()(points, ddf)

    field = to_sitk(ddf_to_itk_field(ddf, fixed_affine).double().numpy(), fixed_affine, is_vector=True)
    transform = sitk.DisplacementFieldTransform(field)
    lps = np.array([-1.0, -1.0, 1.0])
    expected = [lps * transform.TransformPoint((lps * point).tolist()) for point in points.numpy()]
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    assert moved.dtype == torch.float64


def test_points_in_the_outer_half_of_a_border_voxel_move_with_it(ddf, fixed_affine):
    corner = voxel_to_mm(torch.tensor([[-0.4, -0.4, -0.4]]), fixed_affine)

    moved = WarpPoints()(corner, ddf)

    shift = (fixed_affine[:3, :3] @ ddf[:, 0, 0, 0].double().as_tensor())[None]
    torch.testing.assert_close(moved - corner, shift, atol=1e-4, rtol=0)


def test_points_outside_are_counted(ddf, fixed_affine):
    points = voxel_to_mm(torch.tensor([[0.0, 0.0, 0.0], [-2.0, 1.0, 1.0], [1.0, 14.0, 1.0]]), fixed_affine)

    with pytest.raises(ValueError, match="2 of 3 points"):
        WarpPoints()(points, ddf)


def test_a_field_without_place_in_space_is_refused(ddf):
    with pytest.raises(TypeError, match="MetaTensor"):
        WarpPoints()(torch.zeros(1, 3), ddf.as_tensor())


def test_the_dictionary_adds_the_points_in_moving_space(ddf, fixed_affine):
    points = voxel_to_mm(torch.tensor([[3.0, 4.0, 5.0]]), fixed_affine)

    out = WarpPointsd()({"fixed_points": points, "pred": ddf})

    assert torch.equal(out["warped_points"], WarpPoints()(points, ddf))
    assert torch.equal(out["fixed_points"], points)
    assert set(WarpPointsd()({"pred": ddf})) == {"pred"}
