# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.pool_to_grid import grid_size
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, regrid_ddf, share_with_grid, upsample_ddf

SPACING = (2, 3, 5)
SIZES = [(8, 9, 15), (7, 10, 13), (2, 5, 21), (1, 2, 4)]


def cells_of(size, spacing=SPACING):
    return [-(-extent // step) for extent, step in zip(size, spacing, strict=True)]


def interpolate(field, positions):
    """numpy's linear interpolation along one array axis after the other, constant beyond the ends."""
    for axis, (where, centres) in enumerate(positions, start=2):
        field = np.apply_along_axis(lambda values: np.interp(where, centres, values), axis, field)  # noqa: B023
    return field


def stretched(source, target):
    """Where ``target`` samples lie among ``source`` samples that fill the same extent, per axis."""
    return [((np.arange(t) + 0.5) * s / t - 0.5, np.arange(s)) for s, t in zip(source, target, strict=True)]


def scaled(field, factors):
    return field * np.reshape(factors, (1, 3, 1, 1, 1))


@pytest.mark.parametrize("size", SIZES)
def test_values_lie_at_the_cell_centres_and_are_linear_between_them(size):
    cells = cells_of(size)
    coarse_ddf = torch.randn(2, 3, *cells)

    ddf = upsample_ddf(coarse_ddf, SPACING, size)

    centres = [np.arange(n) * step + (step - 1) / 2 for n, step in zip(cells, SPACING, strict=True)]
    slow = interpolate(coarse_ddf.numpy(), [(np.arange(n), c) for n, c in zip(size, centres, strict=True)])
    np.testing.assert_allclose(ddf.numpy(), scaled(slow, SPACING), atol=1e-5)


def test_compat_stretches_the_full_cells_over_the_whole_size():
    coarse_ddf, size = torch.randn(1, 3, 3, 3, 2), (7, 10, 13)

    ddf = upsample_ddf(coarse_ddf, SPACING, size, compat=True)

    slow = interpolate(coarse_ddf.numpy(), stretched((3, 3, 2), size))
    np.testing.assert_allclose(ddf.numpy(), scaled(slow, SPACING), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_field_in_cells_is_the_same_constant_in_voxels_and_back(size):
    coarse_ddf = torch.tensor([1.0, -2, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, *cells_of(size))

    ddf = upsample_ddf(coarse_ddf, SPACING, size)

    torch.testing.assert_close(ddf, torch.tensor([2.0, -6, 2.5]).view(1, 3, 1, 1, 1).expand(1, 3, *size))
    torch.testing.assert_close(downsample_ddf(ddf, SPACING), coarse_ddf)


def test_downsampling_takes_the_mean_of_every_cell_in_cells():
    ddf = torch.randn(1, 3, 7, 10, 13)

    coarse_ddf = downsample_ddf(ddf, SPACING)

    assert coarse_ddf.shape == (1, 3, 4, 4, 3)
    for cell in [(0, 0, 0), (2, 1, 1), (3, 3, 2)]:
        voxels = tuple(slice(c * s, (c + 1) * s) for c, s in zip(cell, SPACING, strict=True))
        mean = ddf[(0, slice(None), *voxels)].mean((1, 2, 3))
        torch.testing.assert_close(coarse_ddf[(0, slice(None), *cell)], mean / torch.tensor(SPACING))


def test_downsampling_undoes_upsampling_of_a_linear_field_inside():
    cells = (5, 6, 4)
    matrix = np.random.default_rng(0).standard_normal((3, 3))
    coarse_ddf = torch.from_numpy(np.einsum("ca,aijk->cijk", matrix, np.indices(cells)))[None].float()

    there_and_back = downsample_ddf(upsample_ddf(coarse_ddf, SPACING, (10, 18, 20)), SPACING)

    torch.testing.assert_close(there_and_back[..., 1:-1, 1:-1, 1:-1], coarse_ddf[..., 1:-1, 1:-1, 1:-1])


def test_compat_resamples_down_to_the_full_cells():
    ddf = torch.randn(1, 3, 7, 10, 13)

    coarse_ddf = downsample_ddf(ddf, SPACING, compat=True)

    slow = interpolate(ddf.numpy(), stretched((7, 10, 13), (3, 3, 2)))
    np.testing.assert_allclose(coarse_ddf.numpy(), scaled(slow, 1 / np.array(SPACING)), atol=1e-5)


def test_one_voxel_per_cell_changes_nothing():
    ddf = torch.randn(1, 3, 4, 5, 6)

    assert torch.equal(upsample_ddf(ddf, (1, 1, 1), (4, 5, 6)), ddf)
    assert torch.equal(downsample_ddf(ddf, (1, 1, 1)), ddf)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("size", [(8, 9, 15), (7, 10, 13)])
def test_the_field_is_the_same_where_gradients_are_wanted(size, compat):
    coarse_ddf = torch.randn(2, 3, *grid_size(size, SPACING, compat))

    in_graph = upsample_ddf(coarse_ddf.clone().requires_grad_(), SPACING, size, compat)

    assert in_graph.requires_grad
    torch.testing.assert_close(in_graph.detach(), upsample_ddf(coarse_ddf, SPACING, size, compat), rtol=0, atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_changes_of_grid_have_the_right_gradients(compat):
    coarse_ddf = torch.randn(1, 3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    size = (5, 6, 7) if compat else (4, 5, 6)

    assert torch.autograd.gradcheck(lambda ddf: upsample_ddf(ddf, (2, 3, 2), size, compat), coarse_ddf)
    assert torch.autograd.gradcheck(lambda ddf: regrid_ddf(ddf, (2, 3, 2), (3, 2, 2), size, compat), coarse_ddf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_fields_keep_their_type(dtype):
    coarse_ddf, size = torch.randn(2, 3, 4, 3, 3), (7, 9, 11)

    for moved in (lambda ddf: upsample_ddf(ddf, SPACING, size), lambda ddf: regrid_ddf(ddf, SPACING, (1, 2, 3), size)):
        assert moved(coarse_ddf.to(dtype)).dtype == dtype
        torch.testing.assert_close(moved(coarse_ddf.to(dtype)).float(), moved(coarse_ddf), rtol=0, atol=0.03)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("size", [(9, 10, 15), (7, 13, 21), (23, 19, 31)])
@pytest.mark.parametrize(
    ("spacing", "new_spacing"),
    [((6, 6, 6), (2, 2, 2)), (SPACING, (3, 1, 4)), ((1, 2, 3), (1, 1, 1)), ((2, 4, 3), (5, 4, 6)), ((3, 3, 3),) * 2],
)
def test_a_direct_change_of_grid_is_up_and_down_again(spacing, new_spacing, size, compat):
    coarse_ddf = torch.randn(2, 3, *grid_size(size, spacing, compat))

    moved = regrid_ddf(coarse_ddf, spacing, new_spacing, size, compat)

    slow = downsample_ddf(upsample_ddf(coarse_ddf, spacing, size, compat), new_spacing, compat)
    torch.testing.assert_close(moved, slow, rtol=0, atol=2e-5)


def test_images_thinner_than_a_cell_change_grids_too():
    moved = regrid_ddf(torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1, 1), (6, 6, 6), (2, 3, 4), (1, 2, 4))

    torch.testing.assert_close(moved, torch.tensor([3.0, 4, 4.5]).view(1, 3, 1, 1, 1))


def test_a_direct_change_of_grid_never_holds_the_whole_field(largest_tensor):
    with largest_tensor() as largest:
        regrid_ddf(torch.randn(1, 3, 6, 5, 7), (6, 6, 6), (3, 3, 3), (36, 30, 42))

    assert largest.values <= 3 * 12 * 10 * 14


def test_upsampling_holds_little_more_than_its_result(largest_tensor):
    with largest_tensor() as largest:
        upsample_ddf(torch.randn(2, 3, 6, 5, 7), (6, 6, 6), (36, 30, 42))

    assert largest.values == 2 * 3 * 36 * 30 * 42


def test_mixed_precision_does_not_reach_the_field():
    coarse_ddf, size = torch.randn(1, 3, 4, 3, 3), (7, 9, 11)
    moved = regrid_ddf(coarse_ddf, SPACING, (1, 2, 3), size), upsample_ddf(coarse_ddf, SPACING, size)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regrid_ddf(coarse_ddf, SPACING, (1, 2, 3), size), moved[0])
        assert torch.equal(upsample_ddf(coarse_ddf, SPACING, size), moved[1])


@pytest.mark.parametrize("move", [upsample_ddf, lambda ddf, *grid: regrid_ddf(ddf, grid[0], (2, 2, 2), grid[1])])
@pytest.mark.parametrize("size", [(9, 9, 15), (8, 9, 16), (6, 9, 15)])
def test_other_cells_than_those_of_the_size_are_refused(size, move):
    with pytest.raises(ValueError, match=r"\(4, 3, 3\) cells of \(2, 3, 5\) voxels do not cover"):
        move(torch.zeros(1, 3, 4, 3, 3), SPACING, size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_shared_with_the_grid_is_the_transpose_of_the_interpolation(size):
    field = torch.randn(2, 3, *cells_of(size), dtype=torch.float64)
    values = torch.randn(2, 3, *size, dtype=torch.float64)

    shared = share_with_grid(values, SPACING)

    fine = upsample_ddf(field / torch.tensor(SPACING).view(1, 3, 1, 1, 1), SPACING, size)
    voxels = torch.tensor(SPACING).prod()
    torch.testing.assert_close((shared * field).sum(), (values * fine).sum() / voxels)
    torch.testing.assert_close(shared.sum(), values.sum() / voxels)


def test_fields_on_two_axes_are_those_on_three_of_which_one_is_constant():
    flat, size = torch.randn(2, 2, 4, 3), (7, 8)

    fine = upsample_ddf(flat, (2, 3), size)

    solid = torch.cat([flat, flat[:, :1]], 1).unsqueeze(-1).expand(-1, -1, -1, -1, 2)
    torch.testing.assert_close(fine, upsample_ddf(solid, (2, 3, 5), (*size, 6))[:, :2, ..., 0])
