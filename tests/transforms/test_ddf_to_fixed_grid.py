# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.transforms import (
    DDFToFixedGrid,
    DDFToFixedGridd,
    ResampleToFixed,
    SpatialDisplacement,
    WarpByDDF,
    centre_alignment,
    grid_voxels,
    mm_to_ddf,
)

IDENTITY = torch.eye(4, dtype=torch.float64)


@pytest.fixture
def fixed(fixed_affine, fixed_size, smooth_image) -> MetaTensor:
    return smooth_image(fixed_size, fixed_affine)


def linear_displacement_mm(size, affine) -> torch.Tensor:
    """``(3, *size)`` mm, the same function of physical space on every grid."""
    world = grid_voxels(size, affine, dtype=torch.float64)
    matrix = torch.tensor([[0.02, -0.03, 0.01], [0.04, 0.01, -0.02], [-0.01, 0.03, 0.05]], dtype=torch.float64)
    return torch.tensordot(matrix, world, dims=1) + 1.0


def test_a_result_on_a_coarser_grid_moves_the_same_points_after_the_initial_alignment(fixed):
    initial = IDENTITY.clone()
    initial[0, 1], initial[1, 0] = 0.2, -0.2
    initial[:3, 3] = torch.tensor([5.0, -3.0, 2.0])
    resampler = ResampleToFixed(spacing=(2.0, 2.5, 3.0))
    size, affine = resampler.working_grid(fixed)
    working = resampler.intensities(fixed, size, affine)
    ddf = mm_to_ddf(linear_displacement_mm(size, affine), affine)

    total = DDFToFixedGrid()(ddf, working, fixed, initial)

    x = grid_voxels(fixed.shape[1:], IDENTITY, total.as_tensor(), dtype=torch.float64)
    moved = torch.tensordot(fixed.affine[:3, :3], x, dims=1) + fixed.affine[:3, 3].reshape(3, 1, 1, 1)
    p = grid_voxels(fixed.shape[1:], fixed.affine, dtype=torch.float64)
    expected = torch.tensordot(initial[:3, :3], p + linear_displacement_mm(fixed.shape[1:], fixed.affine), dims=1)
    expected += initial[:3, 3].reshape(3, 1, 1, 1)
    inner = (slice(None), *[slice(2, -2)] * 3)  # beyond the outermost centres of larger voxels the field is continued
    torch.testing.assert_close(moved[inner], expected[inner], atol=1e-3, rtol=0)
    assert total.dtype == torch.float32


def test_the_original_moving_image_is_warped_to_what_the_network_saw(
    fixed, moving_affine, moving_size, smooth_image, smooth_ddf
):
    far = moving_affine.clone()
    far[:3, 3] += torch.tensor([200.0, -50.0, 80.0], dtype=torch.float64)
    moving = smooth_image(moving_size, far)
    _, moving_working, initial = ResampleToFixed(initial="centres")(fixed, moving)
    ddf = smooth_ddf(tuple(fixed.shape[1:]), amplitude=1.5)

    total = DDFToFixedGrid()(ddf, fixed, fixed, initial)

    assert torch.equal(initial, centre_alignment(fixed, moving))
    seen = warp(moving_working.as_tensor()[None], ddf[None])[0]
    warped = WarpByDDF()(moving, total, fixed.affine).as_tensor()
    inner = (slice(None), *[slice(3, -3)] * 3)
    assert seen[inner].std() > 10
    torch.testing.assert_close(warped[inner], seen[inner], atol=2.0, rtol=0)  # seen went through two interpolations


def field_of_another_grid(fixed, smooth_ddf) -> SpatialDisplacement:
    affine = fixed.affine.clone()
    affine[:3, :3] = 1.2 * fixed.affine[:3, [1, 0, 2]]
    affine[:3, 3] -= 2 * fixed.affine[:3, :3].sum(1)
    return SpatialDisplacement(smooth_ddf((15, 18, 13), 1.5), affine)


def moved_one_by_one(field: SpatialDisplacement, points_mm: np.ndarray) -> np.ndarray:
    """Where points ``(N, 3)`` go, each voxel's displacement interpolated by scipy."""
    affine = field.affine.numpy()
    voxel = (points_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    ddf = field.ddf.double().numpy()
    shift = [scipy.ndimage.map_coordinates(part, voxel.T, order=1, mode="nearest") for part in ddf]
    return points_mm + np.transpose(shift) @ affine[:3, :3].T


def test_a_point_meets_the_networks_field_first_and_then_the_initial_one(fixed, smooth_ddf):
    initial = field_of_another_grid(fixed, smooth_ddf)
    size, affine = ResampleToFixed(spacing=(2.0, 2.5, 3.0)).working_grid(fixed)
    working = MetaTensor(torch.zeros(1, *size), affine=affine)
    ddf = 2 * torch.cos(smooth_ddf(size))

    total = DDFToFixedGrid()(ddf, working, fixed, initial)

    points = grid_voxels(fixed.shape[1:], fixed.affine, dtype=torch.float64).flatten(1).T.numpy()
    expected = moved_one_by_one(initial, moved_one_by_one(SpatialDisplacement(ddf, affine), points))
    moved = moved_one_by_one(SpatialDisplacement.from_metatensor(total), points)
    np.testing.assert_allclose(moved, expected, atol=1e-3)
    swapped = moved_one_by_one(SpatialDisplacement(ddf, affine), moved_one_by_one(initial, points))
    assert np.abs(moved - swapped).max() > 0.1
    assert total.dtype == torch.float32


def test_a_field_that_went_through_a_batch_is_the_same(fixed, smooth_ddf):
    initial, ddf = field_of_another_grid(fixed, smooth_ddf), smooth_ddf(tuple(fixed.shape[1:]), 1.0)
    item = {"fixed": fixed, "fixed_working": fixed, "initial": initial.to_metatensor(), "pred": ddf}

    assert torch.equal(DDFToFixedGridd()(item)["pred"], DDFToFixedGrid()(ddf, fixed, fixed, initial))


def test_a_matrix_and_its_field_give_the_same_total(fixed, smooth_ddf):
    matrix = IDENTITY.clone()
    matrix[0, 1], matrix[1, 0], matrix[2, 3] = 0.1, -0.1, 4.0
    wide = fixed.affine.clone()
    wide[:3, 3] -= 6 * fixed.affine[:3, :3].sum(1)
    field = SpatialDisplacement.from_chain([matrix], wide, [extent + 12 for extent in fixed.shape[1:]])
    ddf = smooth_ddf(tuple(fixed.shape[1:]))

    by_field, by_matrix = (DDFToFixedGrid()(ddf, fixed, fixed, initial) for initial in (field, matrix))

    torch.testing.assert_close(by_field, by_matrix, atol=1e-4, rtol=0)


def test_on_the_fixed_grid_without_initial_alignment_nothing_changes(fixed, smooth_ddf):
    ddf = smooth_ddf(tuple(fixed.shape[1:]))

    assert torch.equal(DDFToFixedGrid()(ddf, fixed, fixed, IDENTITY).as_tensor(), ddf)


def test_the_result_carries_the_fixed_images_meta(fixed, moving_affine, smooth_ddf):
    network_output = MetaTensor(
        smooth_ddf(tuple(fixed.shape[1:])), affine=moving_affine, meta={"filename_or_obj": "moving.nii"}
    )
    item = {"fixed": fixed, "fixed_working": fixed, "initial": IDENTITY, "pred": network_output}

    pred = DDFToFixedGridd()(item)["pred"]

    assert torch.equal(pred.affine, fixed.affine)
    assert pred.meta["filename_or_obj"] == fixed.meta["filename_or_obj"]
    assert item["pred"] is network_output


def test_a_displacement_off_the_working_grid_is_refused(fixed):
    with pytest.raises(ValueError, match=r"\(3, 17, 14, 11\)"):
        DDFToFixedGrid()(torch.zeros(3, 5, 5, 5), fixed, fixed, IDENTITY)


def test_a_failed_registration_is_said_so(fixed):
    with pytest.raises(ValueError, match="NaN"):
        DDFToFixedGrid()(torch.full((3, *fixed.shape[1:]), float("nan")), fixed, fixed, IDENTITY)
