# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.apps.commands import compose, convert, invert
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.transforms import (
    SpatialDisplacement,
    grid_voxels,
    read_linear_transform,
    read_transform,
    write_transform,
)


@pytest.fixture(autouse=True)
def _work_in(space, monkeypatch):
    monkeypatch.chdir(space.folder)


def displacement_mm(field: SpatialDisplacement) -> torch.Tensor:
    return torch.tensordot(field.affine[:3, :3].float(), field.ddf, dims=1)


@pytest.mark.parametrize("target", ["f.nii.gz", "f.nrrd", "f.mha", "f.h5", "f.tfm", "f.npz"])
def test_a_field_is_the_same_in_every_form(space, target):
    convert("field.nii.gz", target)
    convert(target, "again.nii.gz", fixed="fixed.nii.gz")

    again = read_transform("again.nii.gz")
    tolerance = 5e-3 if target.endswith("npz") else 1e-4  # float16
    torch.testing.assert_close(displacement_mm(again), displacement_mm(space.field), atol=tolerance, rtol=0)


def test_learn2regs_form_counts_voxels_of_the_fixed_image(space):
    import nibabel as nib

    convert("field.nii.gz", "ddf.nii.gz", form="learn2reg")

    array = torch.tensor(nib.load("ddf.nii.gz").get_fdata(), dtype=torch.float32)
    torch.testing.assert_close(array.movedim(-1, 0), space.field.ddf, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["m.mat", "m.h5", "m.txt"])
def test_a_linear_transform_stays_linear(space, target):
    convert("matrix.tfm", target)

    torch.testing.assert_close(read_linear_transform(target), space.matrix, atol=1e-9, rtol=0)


def test_a_linear_transform_becomes_a_field_on_the_grid_that_is_given(space):
    convert("matrix.tfm", "f.nii.gz", fixed="fixed.nii.gz")

    torch.testing.assert_close(read_transform("f.nii.gz").ddf, space.field.ddf, atol=1e-4, rtol=0)


def test_a_linear_transform_has_no_grid_for_a_field():
    with pytest.raises(ValueError, match=r"matrix\.tfm.*fixed image"):
        convert("matrix.tfm", "f.nii.gz")


@pytest.mark.parametrize(("first", "second"), [("field.nii.gz", "matrix.tfm"), ("matrix.tfm", "field.nii.gz")])
def test_points_meet_the_first_of_a_composition_first(space, first, second):
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([0.5, 0.25, -0.5])
    write_transform(shift, "shift.tfm")
    names = [name if name.startswith("field") else "shift.tfm" for name in (first, second)]

    compose(*names, "total.nii.gz", fixed="fixed.nii.gz")

    chain = [space.matrix if name.startswith("field") else shift for name in names]
    expected = SpatialDisplacement.from_chain([chain[1] @ chain[0]], space.fixed.affine, space.field.size)
    inner = (slice(None), *(slice(1, -1),) * 3)  # a field is nothing beyond its grid
    torch.testing.assert_close(read_transform("total.nii.gz").ddf[inner], expected.ddf[inner], atol=1e-3, rtol=0)


def test_the_grid_of_a_composition_is_that_of_its_first_field(space):
    compose("field.nii.gz", "matrix.tfm", "total.nii.gz")

    total = read_transform("total.nii.gz")
    assert total.size == space.field.size
    expected = SpatialDisplacement.from_chain([space.matrix @ space.matrix], space.fixed.affine, space.field.size)
    torch.testing.assert_close(total.ddf, expected.ddf, atol=1e-3, rtol=0)


def test_linear_transforms_compose_to_a_linear_one(space):
    compose("matrix.tfm", "matrix.tfm", "total.tfm")

    torch.testing.assert_close(read_linear_transform("total.tfm"), space.matrix @ space.matrix, atol=1e-9, rtol=0)


@pytest.mark.parametrize("files", [(), ("a.h5",), ("a.h5", "b.h5")])
def test_a_composition_needs_two_transforms_and_a_place_to_go(files):
    with pytest.raises(UsageError, match="at least two transforms"):
        compose(*files)


def test_the_inverse_lies_on_the_moving_grid_and_its_residual_is_told(space, capsys):
    invert("field.nii.gz", "inverse.nii.gz", moving="moving.nii.gz")

    inverse = read_transform("inverse.nii.gz")
    assert inverse.size == tuple(space.moving.shape[1:])
    exact = SpatialDisplacement.from_chain([torch.linalg.inv(space.matrix)], space.moving.affine, inverse.size)
    moving_voxels = grid_voxels(inverse.size, torch.eye(4)) + exact.ddf
    to_fixed = torch.linalg.inv(space.fixed.affine) @ space.moving.affine
    fixed_voxels = (
        torch.tensordot(to_fixed[:3, :3].float(), moving_voxels, 1) + to_fixed[:3, 3].float()[:, None, None, None]
    )
    last = torch.tensor(space.field.size)[:, None, None, None] - 1
    inside = ((fixed_voxels >= 0) & (fixed_voxels <= last)).all(dim=0)
    assert inside.sum() > 500
    torch.testing.assert_close(inverse.ddf[:, inside], exact.ddf[:, inside], atol=1e-3, rtol=0)
    residual = float(capsys.readouterr().out.split("mean residual ")[1].split(" voxels")[0])
    assert residual < 0.01


def test_the_inverse_of_a_linear_transform_is_exact(space):
    invert("matrix.tfm", "inverse.mat")
    invert("matrix.tfm", "inverse.nii.gz", moving="moving.nii.gz")

    torch.testing.assert_close(read_linear_transform("inverse.mat"), torch.linalg.inv(space.matrix), atol=1e-9, rtol=0)
    size = tuple(space.moving.shape[1:])
    exact = SpatialDisplacement.from_chain([torch.linalg.inv(space.matrix)], space.moving.affine, size)
    torch.testing.assert_close(read_transform("inverse.nii.gz").ddf, exact.ddf, atol=1e-4, rtol=0)


def test_a_folded_field_is_refused_with_the_place_unless_folding_is_allowed(space):
    ddf = torch.zeros(3, *space.field.size)
    ddf[0, 5:] = -3.0  # what lies behind plane 5 goes before it
    write_transform(SpatialDisplacement(ddf, space.fixed.affine), "folded.nii.gz")

    with pytest.raises(ValueError, match=r"folds in \d+ voxels.*voxel \([45], "):
        invert("folded.nii.gz", "inverse.nii.gz")
    assert not (space.folder / "inverse.nii.gz").exists()

    invert("folded.nii.gz", "inverse.nii.gz", allow_folding=True)
    assert (space.folder / "inverse.nii.gz").exists()
