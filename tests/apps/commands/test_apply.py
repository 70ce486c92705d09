# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.apps.commands import apply
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.data import read_points, write_points
from monai_reg_ext.transforms import grid_voxels
from monai_reg_ext.transforms.read_volume import read_volume


def moved(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def inside_points(space):
    generator = torch.Generator().manual_seed(1)
    voxels = 1 + torch.rand(6, 3, generator=generator, dtype=torch.float64) * (torch.tensor(space.field.size) - 3)
    return voxels @ space.fixed.affine[:3, :3].T + space.fixed.affine[:3, 3]


@pytest.mark.parametrize("transform", ["field.nii.gz", "matrix.tfm", "matrix.tfm,field.nii.gz"])
def test_an_image_comes_out_on_the_fixed_grid_with_what_lies_where_the_transform_leads(space, transform):
    files = ",".join(str(space.folder / name) for name in transform.split(","))
    output = space.folder / "warped.mha"

    apply(files, str(space.folder / "moving.nii.gz"), output=output, fixed=space.folder / "fixed.nii.gz")

    warped = read_volume(output, "warped")
    torch.testing.assert_close(warped.affine, space.fixed.affine, atol=1e-5, rtol=0)
    points = grid_voxels(space.field.size, space.fixed.affine).flatten(1).T.double()
    for _ in transform.split(","):
        points = moved(space.matrix, points)
    inner = (slice(1, -1),) * 3 if "," in transform else (slice(None),) * 3  # beyond its grid ITK's field is nothing
    expected = space.ramp(points.T).reshape(space.field.size).float()
    torch.testing.assert_close(warped.as_tensor()[0][inner], expected[inner], atol=2e-2, rtol=0)


def test_the_grid_is_the_fields_own_where_none_is_asked_for(space):
    apply(str(space.folder / "field.nii.gz"), str(space.folder / "moving.nii.gz"), output=space.folder / "out.nii")

    warped = read_volume(space.folder / "out.nii", "out")
    assert tuple(warped.shape[1:]) == space.field.size
    torch.testing.assert_close(warped.affine, space.fixed.affine, atol=1e-4, rtol=0)


@pytest.mark.parametrize("transform", ["field.nii.gz", "matrix.tfm"])
def test_the_inverse_brings_the_fixed_scan_onto_the_moving_grid(space, transform):
    apply(
        str(space.folder / transform), str(space.folder / "fixed.nii.gz"), output=space.folder / "back.nrrd",
        moving=space.folder / "moving.nii.gz", inverse=True,
    )  # fmt: skip

    back = read_volume(space.folder / "back.nrrd", "back")
    assert back.shape == space.moving.shape
    points = moved(torch.linalg.inv(space.matrix), grid_voxels(back.shape[1:], back.affine).flatten(1).T.double())
    voxels = moved(torch.linalg.inv(space.fixed.affine), points)
    last = torch.tensor(space.field.size) - 1
    inside = ((voxels >= 0) & (voxels <= last)).all(dim=1)
    assert inside.sum() > 500
    torch.testing.assert_close(
        back.as_tensor().flatten()[inside], space.ramp(points.T)[inside].float(), atol=2e-2, rtol=0
    )


@pytest.mark.parametrize("mode", ["nearest", "label"])
def test_label_maps_keep_their_labels_and_a_small_type(space, mode):
    labels = (space.moving.as_tensor() > 0).to(torch.int16) * 7
    write_volume(MetaTensor(labels, affine=space.moving.affine), space.folder / "labels.nrrd")

    apply(
        str(space.folder / "field.nii.gz"), str(space.folder / "labels.nrrd"), output=space.folder / "out.nii.gz",
        mode=mode,
    )  # fmt: skip

    warped = read_volume(space.folder / "out.nii.gz", "out")
    assert warped.dtype == torch.uint8
    assert warped.unique().tolist() == [0, 7]
    points = moved(space.matrix, grid_voxels(space.field.size, space.fixed.affine).flatten(1).T.double())
    values = space.ramp(points.T).reshape(space.field.size)
    certain = values.abs() > 8  # more than a voxel away from the border
    assert torch.equal(warped.as_tensor()[0][certain] == 7, (values > 0)[certain])


def test_intensities_are_no_labels(space):
    with pytest.raises(ValueError, match="label maps"):
        apply(
            str(space.folder / "field.nii.gz"), str(space.folder / "moving.nii.gz"), output=space.folder / "out.nii",
            mode="nearest",
        )  # fmt: skip

    assert not (space.folder / "out.nii").exists()


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json", ".vtk"])
def test_points_go_from_fixed_to_moving_space_and_back(space, suffix):
    points = inside_points(space)
    write_points(space.folder / "points.csv", points)
    field, there = str(space.folder / "field.nii.gz"), space.folder / f"there{suffix}"

    apply(field, str(space.folder / "points.csv"), output=there)
    apply(field, str(there), output=space.folder / "back.csv", inverse=True)

    torch.testing.assert_close(read_points(there), moved(space.matrix, points), atol=1e-4, rtol=0)
    torch.testing.assert_close(read_points(space.folder / "back.csv"), points, atol=1e-4, rtol=0)


def test_points_in_voxels_count_those_of_the_scan_they_belong_to(space):
    points = inside_points(space)
    write_points(space.folder / "points.csv", points, "voxel", space.fixed.affine)
    given = {"points_space": "voxel", "moving": space.folder / "moving.nii.gz"}
    field = str(space.folder / "field.nii.gz")

    apply(field, str(space.folder / "points.csv"), output=space.folder / "there.csv", **given)
    apply(field, str(space.folder / "there.csv"), output=space.folder / "back.csv", inverse=True, **given)

    there = read_points(space.folder / "there.csv", "voxel", space.moving.affine)
    torch.testing.assert_close(there, moved(space.matrix, points), atol=1e-4, rtol=0)
    back = read_points(space.folder / "back.csv", "voxel", space.fixed.affine)
    torch.testing.assert_close(back, points, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output": "out.png"}, ValueError, r"out\.png: the suffix of an image"),
        (
            {"output": "out.nii", "mode": "sinc"},
            UsageError,
            "--mode must be one of linear, cubic, nearest, label and points",
        ),
        ({"output": "out.nii", "mode": "points"}, ValueError, r"out\.nii: the suffix of a point file"),
        ({"output": "out.nii", "moving": "moving.nii.gz"}, UsageError, "--moving is the grid for --inverse"),
        ({"output": "p.csv", "mode": "points", "points_space": "voxel"}, UsageError, "needs --moving"),
    ],
)
def test_what_does_not_go_together_is_refused(space, monkeypatch, arguments, error, message):
    monkeypatch.chdir(space.folder)

    with pytest.raises(error, match=message):
        apply("field.nii.gz", "moving.nii.gz", **arguments)

    assert not (space.folder / arguments["output"]).exists()
