# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.transforms import (
    DDFToFixedGrid,
    DDFToFixedGridd,
    ResampleToFixed,
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
