# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, upsample_ddf

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


@pytest.mark.parametrize("size", [(9, 9, 15), (8, 9, 16)])
def test_too_few_cells_for_the_size_are_refused(size):
    with pytest.raises(ValueError, match=r"\(4, 3, 3\) cells of \(2, 3, 5\) voxels do not cover"):
        upsample_ddf(torch.zeros(1, 3, 4, 3, 3), SPACING, size)
