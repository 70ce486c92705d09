# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.autograd import grad

from monai_reg_ext.networks.kernels import runtime
from monai_reg_ext.networks.layers.search_grid import search_grid
from monai_reg_ext.networks.layers.window_cost import window_cost
from monai_reg_ext.networks.layers.window_mean import window_mean

SIZE = (9, 8, 11)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1 << 28, 1])
def channels_at_once(request, monkeypatch, compiled):
    """All channels, and one after the other."""
    compiled(lambda: runtime._load("window"))
    monkeypatch.setattr("monai_reg_ext.networks.kernels.window._LINE_BYTES", request.param)


# one displacement or point along an axis, more samples than one block of 128, and volumes of a single voxel
GRIDS = [
    (SIZE, (4, 6, 5), (3, 5, 4), (2.2, 3.1, 1.7)),
    (SIZE, (1, 2, 29), (2, 1, 9), (1.0, 0.0, 3.3)),
    ((1, 8, 1), (3, 4, 2), (2, 3, 2), (0.7, 2.0, 1.0)),
]


@pytest.mark.parametrize(("size", "points", "labels", "reach"), GRIDS)
def test_the_compiled_costs_and_gradients_are_the_plain_ones(
    size, points, labels, reach, threads, channels_at_once, compiled, plain
):
    grid = search_grid(size, points, labels, reach, torch.zeros(1))
    fixed = torch.rand(2, 5, *points, requires_grad=True)
    moving = torch.rand(2, 5, *size, requires_grad=True)
    slopes = torch.randn(2, *labels, *points)

    def found():
        cost = window_cost(fixed, moving, grid)
        return cost, *grad(cost, (fixed, moving), slopes)

    for one, other in zip(compiled(found), plain(found), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize(("size", "points", "labels", "reach"), GRIDS)
def test_the_compiled_means_and_gradients_are_the_plain_ones(
    size, points, labels, reach, threads, channels_at_once, compiled, plain
):
    grid = search_grid(size, points, labels, reach, torch.zeros(1))
    weights = torch.rand(2, *labels, *points, requires_grad=True)
    values, slopes = torch.randn(2, 5, *size), torch.randn(2, 5, *points)

    def found():
        mean = window_mean(weights, values, grid)
        return mean, *grad(mean, weights, slopes)

    for one, other in zip(compiled(found), plain(found), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_gradients_need_not_be_contiguous(compiled, plain):
    grid = search_grid(SIZE, (4, 6, 5), (3, 5, 4), (2.2, 3.1, 1.7), torch.zeros(1))
    fixed, moving = torch.rand(1, 5, *grid.size, requires_grad=True), torch.rand(1, 5, *SIZE)

    def found():
        # the gradient of a sum is one number, expanded
        return grad(window_cost(fixed, moving, grid).sum(), fixed)[0]

    torch.testing.assert_close(compiled(found), plain(found), atol=1e-4, rtol=1e-4)
