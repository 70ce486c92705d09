# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_reg_ext.networks.layers.invert_ddf import invert_ddf
from monai_reg_ext.transforms import (
    DDFToFixedGridd,
    InverseFieldd,
    ResampleToFixedd,
    SaveRegistrationd,
    SpatialDisplacement,
    SplitDirectionsd,
    moving_voxels,
    voxel_to_mm,
)


def pose() -> torch.Tensor:
    """An initial alignment that turns, stretches and shifts."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", (5, -4, 6), degrees=True).as_matrix() * 1.05)
    matrix[:3, 3] = torch.tensor([2.0, -1.5, 1.0])
    return matrix


@pytest.fixture
def prepared(fixed_size, fixed_affine, moving_size, moving_affine, smooth_image, smooth_ddf):
    """``prepared(initial)``: a pair on its working grid, with the two directions of a symmetric network."""

    def make(initial=None) -> dict:
        item = {
            "pair": "fixed__moving",
            "fixed": smooth_image(fixed_size, fixed_affine),
            "moving": smooth_image(moving_size, moving_affine),
        }
        item = ResampleToFixedd(spacing=2.2, initial=pose() if initial is None else initial)(item)
        ddf = smooth_ddf(tuple(item["fixed_working"].shape[1:]), 1.3)[None]
        return {**item, "pred": torch.cat([ddf, invert_ddf(ddf)], 1)[0]}

    return make


def completed(item: dict, method: str) -> dict:
    return InverseFieldd(method)(DDFToFixedGridd()(SplitDirectionsd("pred")(item)))


def points_inside(image: MetaTensor, margin: int = 2, step: int = 2) -> torch.Tensor:
    axes = [torch.arange(margin, extent - margin, step, dtype=torch.float64) for extent in image.shape[1:]]
    return voxel_to_mm(torch.cartesian_prod(*axes), image.affine)


def test_without_a_method_nothing_is_added(prepared):
    out = completed(prepared(), "none")

    assert out["pred"].shape[0] == 3
    assert not {"pred_inverse", "pred_backward", "inverse_residual_voxel"} & out.keys()


@pytest.mark.parametrize("method", ["numeric", "symmetric"])
def test_points_that_the_field_takes_to_moving_space_are_brought_back_by_the_other(prepared, method):
    out = completed(prepared(), method)

    inverse = SpatialDisplacement.from_metatensor(out["pred_inverse"])
    assert inverse.size == tuple(out["moving"].shape[1:])
    assert torch.equal(inverse.affine, out["moving"].affine)
    assert out["pred_inverse"].meta["filename_or_obj"] == "scan.mha"
    points = points_inside(out["fixed"])
    there = SpatialDisplacement.from_metatensor(out["pred"]).warp_points(points)
    # what is left: fields between their voxels of some 2 mm
    assert (inverse.warp_points(there) - points).norm(dim=1).max() < 0.1
    assert (there - points).norm(dim=1).min() > 1


def test_the_symmetric_inverse_undoes_the_initial_alignment_first_and_then_takes_the_networks_way_back(prepared):
    item = prepared()
    shift_mm = torch.tensor([3.0, -2.0, 4.0], dtype=torch.float64)
    linear = item["fixed_working"].affine[:3, :3]
    shift = torch.linalg.solve(linear, shift_mm).float().reshape(3, 1, 1, 1)
    ddf = shift.expand(3, *item["fixed_working"].shape[1:])

    out = completed({**item, "pred": torch.cat([ddf, -ddf])}, "symmetric")

    q = points_inside(out["moving"], margin=0)
    undone = torch.linalg.inv(pose())
    expected = q @ undone[:3, :3].T + undone[:3, 3] - shift_mm
    found = SpatialDisplacement.from_metatensor(out["pred_inverse"]).warp_points(q)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_way_back_is_the_networks_own_and_no_inversion_of_the_way_there(prepared):
    item = prepared()
    item["pred"] = torch.cat([item["pred"][:3], torch.zeros_like(item["pred"][3:])])

    out = completed(item, "symmetric")

    q = points_inside(out["moving"], margin=0)
    undone = torch.linalg.inv(pose())
    found = SpatialDisplacement.from_metatensor(out["pred_inverse"]).warp_points(q)
    torch.testing.assert_close(found, q @ undone[:3, :3].T + undone[:3, 3], rtol=0, atol=1e-4)


def test_an_initial_field_is_undone_too(prepared, fixed_affine, fixed_size, smooth_ddf):
    start = SpatialDisplacement(smooth_ddf(fixed_size, 1.0).flip(0), fixed_affine)

    out = completed(prepared(start), "symmetric")

    points = points_inside(out["fixed"])
    there = SpatialDisplacement.from_metatensor(out["pred"]).warp_points(points)
    back = SpatialDisplacement.from_metatensor(out["pred_inverse"]).warp_points(there)
    assert (back - points).norm(dim=1).max() < 0.15  # two fields between their voxels


def test_the_residual_of_the_inversion_is_kept_in_voxels(prepared, caplog):
    out = completed(prepared(), "numeric")

    assert 0 < out["inverse_residual_voxel"] < 1e-3
    assert not caplog.records


def test_simpleitk_brings_the_original_fixed_image_onto_the_moving_one_by_the_saved_inverse(
    prepared, tmp_path, to_sitk
):
    out = completed(prepared(), "symmetric")
    fixed, moving, inverse = out["fixed"], out["moving"], out["pred_inverse"]
    SaveRegistrationd(tmp_path)(out)

    field = sitk.ReadImage(tmp_path / "fixed__moving" / "inverse_field.nii.gz", sitk.sitkVectorFloat64)
    theirs = sitk.Resample(
        to_sitk(fixed[0].numpy(), fixed.affine),
        to_sitk(moving[0].numpy(), moving.affine),
        sitk.DisplacementFieldTransform(field),
        sitk.sitkLinear,
    )

    ours = SpatialDisplacement.from_metatensor(inverse).warp(fixed)
    coordinates = moving_voxels(inverse, moving.affine, fixed.affine)
    last = torch.tensor(fixed.shape[1:]).reshape(3, 1, 1, 1) - 1
    inside = ((coordinates > 0) & (coordinates < last)).all(0).numpy()
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    assert inside.mean() > 0.05
    difference = np.abs(sitk.GetArrayFromImage(theirs).transpose(2, 1, 0) - ours[0].numpy())[inside]
    assert difference.max() < 1e-3 * (fixed.max() - fixed.min()).item()


def test_a_folded_field_has_no_inverse_and_the_log_says_where(prepared, caplog):
    item = prepared()
    ddf = torch.zeros(3, *item["fixed"].shape[1:])
    ddf[1, 6, 7, 5], ddf[1, 6, 9, 5] = 2.0, -1.5  # slope (-1.5 - 2) / 2 between them
    item["pred"] = MetaTensor(ddf, affine=item["fixed"].affine)

    with caplog.at_level(logging.WARNING):
        out = InverseFieldd("numeric")(item)

    assert "pred_inverse" not in out
    assert "inverse_residual_voxel" not in out
    (record,) = caplog.records
    assert record.getMessage().startswith("fixed__moving: no inverse field: the field folds in 1 voxels")
    assert "voxel (6, 8, 5)" in record.getMessage()


def test_a_network_of_one_direction_cannot_give_two(prepared):
    item = prepared()
    item["pred"] = item["pred"][:3]

    with pytest.raises(ValueError, match=r"symmetric to true.*numeric"):
        completed(item, "symmetric")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"inverse must be one of .*'numeric'.*got 'exact'"):
        InverseFieldd("exact")
