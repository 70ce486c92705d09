# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_reg_ext.handlers.slice_view import radiological_views
from monai_reg_ext.networks.layers.jacobian import jacobian_determinant
from monai_reg_ext.transforms.conventions import grid_voxels

SIZE = (7, 9, 8)
INDEX = (2, 5, 3)


def affine_of(*columns) -> torch.Tensor:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor(columns, dtype=torch.float64).T
    affine[:3, 3] = torch.tensor([11.0, -5, 30])
    return affine


AFFINES = {
    "RAS": affine_of([1, 0, 0], [0, 2, 0], [0, 0, 3]),
    "LPS": affine_of([-1, 0, 0], [0, -2, 0], [0, 0, 3]),
    "swapped": affine_of([0, 0, -1.5], [2, 0, 0], [0, 3, 0]),
    "oblique": affine_of([0.3, -2, 0.2], [0.1, 0.2, 1.2], [-3, -0.4, 0.3]),
}


@pytest.fixture(params=AFFINES)
def affine(request) -> torch.Tensor:
    return AFFINES[request.param]


def views_of(affine) -> dict:
    return {view.plane: view for view in radiological_views(affine, INDEX)}


def test_slices_are_those_of_nibabels_closest_canonical_image_seen_by_a_radiologist(affine):
    volume = torch.rand(SIZE)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.numpy(), affine.numpy())).get_fdata()
    marker = np.zeros(SIZE, dtype=np.uint8)
    marker[INDEX] = 1
    marker = nib.as_closest_canonical(nib.Nifti1Image(marker, affine.numpy())).get_fdata()
    (right,), (anterior,), (superior,) = np.nonzero(marker)

    views = views_of(affine)

    from_positive_ends = canonical[::-1, ::-1, ::-1]  # right, anterior and superior first
    size = canonical.shape
    expected = {
        "axial": from_positive_ends[:, :, size[2] - 1 - superior].T,
        "coronal": from_positive_ends[:, size[1] - 1 - anterior].T,
        "sagittal": from_positive_ends[size[0] - 1 - right].T,
    }
    for plane, view in views.items():
        np.testing.assert_array_equal(view.cut(volume).numpy(), expected[plane].astype(np.float32))


@pytest.mark.parametrize(
    ("plane", "letters", "down_axis", "across_axis"),
    [("axial", "APRL", 1, 0), ("coronal", "SIRL", 2, 0), ("sagittal", "SIAP", 2, 1)],
)
def test_letters_and_spacing_follow_the_patient(affine, plane, letters, down_axis, across_axis):
    world = grid_voxels(SIZE, affine, dtype=torch.float64)

    view = views_of(affine)[plane]

    assert "".join(view.letters) == letters
    position = view.cut(world)
    down, across = position[:, 1:] - position[:, :-1], position[..., 1:] - position[..., :-1]
    # world axes grow towards R, A and S, so they fall on the way to the second letter
    assert (down[down_axis] < 0).all()
    assert (across[across_axis] < 0).all()
    assert down.norm(dim=0).numpy() == pytest.approx(view.spacing[0])
    assert across.norm(dim=0).numpy() == pytest.approx(view.spacing[1])


def test_the_grid_of_a_slice_lies_where_the_slice_lies(affine):
    world = grid_voxels(SIZE, affine, dtype=torch.float64)

    for view in views_of(affine).values():
        size, slice_affine = view.grid(affine, SIZE)
        slice_world = grid_voxels(size, slice_affine, dtype=torch.float64)

        torch.testing.assert_close(view.turn(slice_world.squeeze(1 + view.normal)), view.cut(world))


def test_positions_within_the_plane_count_mm_along_the_displays_axes(affine):
    ddf = torch.rand(3, *SIZE)
    moved = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij")) + ddf
    voxel_size_mm = affine[:3, :3].norm(dim=0).float()

    for view in views_of(affine).values():
        down, across = view.position_mm(ddf)

        down_axis, across_axis = view.axes
        torch.testing.assert_close(down, view.cut(moved[down_axis]) * voxel_size_mm[down_axis])
        torch.testing.assert_close(across, view.cut(moved[across_axis]) * voxel_size_mm[across_axis])


@pytest.mark.parametrize("index", [INDEX, (0, 0, 0), (6, 8, 7)])
def test_the_jacobian_of_a_slice_is_a_slice_of_the_jacobian(affine, index):
    ddf = torch.randn(3, *SIZE)
    whole = torch.full(SIZE, torch.nan)
    whole[1:-1, 1:-1, 1:-1] = jacobian_determinant(ddf[None])[0]
    for edge, neighbour in ((0, 1), (-1, -2)):  # outermost slices show their neighbour
        whole[edge], whole[:, edge], whole[:, :, edge] = whole[neighbour], whole[:, neighbour], whole[:, :, neighbour]

    for view in radiological_views(affine, index):
        determinant = view.jacobian(ddf)

        expected = view.cut(whole)
        assert determinant.shape == expected.shape
        torch.testing.assert_close(determinant[1:-1, 1:-1], expected[1:-1, 1:-1])
        assert determinant.isnan().sum() == determinant.numel() - determinant[1:-1, 1:-1].numel()


def test_a_volume_too_thin_for_a_jacobian_is_refused():
    view = views_of(AFFINES["RAS"])["axial"]

    with pytest.raises(ValueError, match="at least 3 voxels per axis"):
        view.jacobian(torch.zeros(3, 7, 9, 2))
