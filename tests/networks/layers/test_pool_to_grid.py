# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.pool_to_grid import grid_size, pool_slabs, pool_to_grid, slabs


def slow_pool(features, spacing, cells):
    """Mean of every cell, by slicing."""
    pooled = np.empty((*features.shape[:2], *cells))
    for cell in itertools.product(*map(range, cells)):
        voxels = tuple(slice(c * s, (c + 1) * s) for c, s in zip(cell, spacing, strict=True))
        pooled[(..., *cell)] = features[(..., *voxels)].mean((2, 3, 4))
    return pooled


@pytest.mark.parametrize(
    ("compat", "spacing", "cells"),
    [
        (False, (2, 3, 4), (4, 3, 4)),
        (True, (2, 3, 4), (3, 2, 3)),
        (False, (1, 4, 1), (7, 2, 13)),
        (False, (9, 2, 20), (1, 4, 1)),
    ],
)
def test_cells_are_means_and_the_tail_is_a_cell_unless_compat_drops_it(compat, spacing, cells):
    features = torch.randn(2, 3, 7, 8, 13)

    pooled = pool_to_grid(features, spacing, compat)

    assert grid_size((7, 8, 13), spacing, compat) == cells
    np.testing.assert_allclose(pooled.numpy(), slow_pool(features.numpy(), spacing, cells), atol=1e-6)


def test_cells_of_one_voxel_are_the_features():
    features = torch.randn(1, 2, 4, 5, 6)

    assert torch.equal(pool_to_grid(features, (1, 1, 1)), features)


@pytest.mark.parametrize("compat", [False, True])
def test_a_constant_is_exactly_this_constant_in_every_cell(compat):
    pooled = pool_to_grid(torch.full((1, 1, 7, 8, 13), 0.7), (3, 5, 7), compat)

    torch.testing.assert_close(pooled, torch.full_like(pooled, 0.7), rtol=1e-7, atol=0)


def test_sums_of_half_precision_do_not_overflow():
    features = torch.full((1, 1, 6, 5, 7), 6e4, dtype=torch.float16)

    assert torch.equal(pool_to_grid(features, (6, 5, 4)), torch.full((1, 1, 1, 1, 2), 6e4, dtype=torch.float16))


def test_features_stay_as_they_were():
    features = torch.randn(1, 2, 4, 5, 6)
    before = features.clone()

    pool_to_grid(features, (2, 1, 4))

    assert torch.equal(features, before)


@pytest.mark.parametrize("compat", [False, True])
def test_pooling_has_the_right_gradient(compat):
    features = torch.randn(2, 1, 3, 4, 5, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda f: pool_to_grid(f, (2, 3, 2), compat), features)


@pytest.mark.parametrize(
    ("size", "compat"),
    [(size, compat) for size in ((17, 8, 13), (12, 9, 10)) for compat in (False, True)]
    + [((1, 6, 7), False), ((5, 2, 7), False)],
)
@pytest.mark.parametrize("spacings", [[(2, 3, 4)], [(3, 2, 2), (2, 4, 1)], [(6, 5, 3), (1, 1, 1), (4, 2, 5)]])
@pytest.mark.usefixtures("thin_slabs")
def test_slabs_are_pooled_as_the_whole_is(spacings, size, compat):
    features = torch.randn(2, 3, *size)

    pooled = pool_slabs(lambda begin, end: features[:, :, begin:end], features, 3, spacings, compat)

    for found, spacing in zip(pooled, spacings, strict=True):
        torch.testing.assert_close(found, pool_to_grid(features, spacing, compat))


@pytest.mark.parametrize(
    ("channels", "multiple", "number"),
    # a row has 24000 values per channel, a slab about six million
    [(1, 1, 1), (12, 1, 2), (40, 1, 5), (40, 4, 8), (10**9, 4, 8)],
)
def test_slabs_follow_on_one_another_from_the_first_row_to_the_last(channels, multiple, number):
    bounds = slabs(torch.zeros(2, 1, 29, 300, 40), channels, multiple)

    assert [row for begin, end in bounds for row in range(begin, end)] == list(range(29))
    assert all(begin % multiple == 0 for begin, _ in bounds)
    assert len(bounds) == number


def test_an_image_without_a_full_cell_is_refused_where_partial_ones_are_dropped():
    assert grid_size((5, 6, 7), (6, 6, 6)) == (1, 1, 2)
    with pytest.raises(ValueError, match=r"\(5, 6, 7\) voxels hold no full cell of \(6, 6, 6\)"):
        pool_to_grid(torch.zeros(1, 1, 5, 6, 7), (6, 6, 6), compat=True)
