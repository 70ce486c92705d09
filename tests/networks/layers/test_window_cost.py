# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import pytest
import torch

from monai_reg_ext.networks.layers.coupled_convex import coupled_convex
from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.sample_axes import sample_axes
from monai_reg_ext.networks.layers.search_grid import SearchGrid, search_grid
from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.networks.layers.window_cost import window_cost

SIZE = (9, 8, 11)
MODULE = importlib.import_module("monai_reg_ext.networks.layers.window_cost")


def unequal_grid(like: torch.Tensor) -> SearchGrid:
    """Nothing whole, nothing equal; some targets lie outside."""
    return search_grid(SIZE, (4, 6, 5), (3, 5, 4), (2.2, 3.1, 1.7), like)


def one_by_one(fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    """Every displacement by itself, eight corners for every sample."""
    points = torch.stack(torch.meshgrid(*grid.points, indexing="ij")).expand(len(fixed), -1, -1, -1, -1)
    at_points = sample(fixed, points)
    costs = [
        (at_points - sample(moving, points + displacement.view(3, 1, 1, 1))).square().sum(1)
        for displacement in grid.displacements
    ]
    return torch.stack(costs, 1).unflatten(1, grid.window)


@pytest.fixture
def thin_slabs_of_window(monkeypatch):
    """One row of points at a time, without compiled kernels."""
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")
    monkeypatch.setattr(MODULE, "_CPU_SLAB", 1)


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_it_compares_where_each_displacement_leads(kernels, monkeypatch):
    monkeypatch.setenv("MONAI_REG_NUMBA", kernels)
    fixed, moving = torch.rand(2, 2, 5, *SIZE)
    grid = unequal_grid(fixed)

    cost = window_cost(sample_axes(fixed, grid.points), moving, grid)

    assert cost.shape == (2, 3, 5, 4, 4, 6, 5)
    torch.testing.assert_close(cost, one_by_one(fixed, moving, grid), atol=1e-5, rtol=1e-5)


def test_slabs_do_not_change_it(thin_slabs_of_window):
    fixed, moving = torch.rand(2, 2, 5, *SIZE)
    grid = unequal_grid(fixed)

    cost = window_cost(sample_axes(fixed, grid.points), moving, grid)

    torch.testing.assert_close(cost, one_by_one(fixed, moving, grid), atol=1e-5, rtol=1e-5)


def test_a_planted_shift_costs_nothing():
    # steps of 1.5, 2 and 1 cells
    moving = torch.rand(1, 4, *SIZE)
    grid = search_grid(SIZE, (2, 2, 4), (5, 3, 3), (3.0, 2.0, 1.0), moving)
    shifted = SearchGrid(tuple(axis + d for axis, d in zip(grid.points, (-1.5, 2.0, 0.0), strict=True)), grid.labels)

    cost = window_cost(sample_axes(moving, shifted.points), moving, grid)

    assert torch.equal(cost[0].flatten(0, 2).flatten(1).argmin(0), torch.full((16,), (1 * 3 + 2) * 3 + 1))
    torch.testing.assert_close(cost[0, 1, 2, 1], torch.zeros(2, 2, 4))


def test_its_gradient_is_right(thin_slabs_of_window):
    moving = torch.rand(2, 2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    grid = search_grid((4, 3, 5), (2, 3, 1), (2, 1, 3), (1.2, 0.0, 1.7), moving)
    fixed = torch.rand(2, 2, *grid.size, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda *sides: window_cost(*sides, grid), (fixed, moving))


def test_no_sample_of_the_whole_window_exists_forward_or_backward(thin_slabs_of_window, largest_tensor):
    moving = torch.rand(1, 8, *SIZE, requires_grad=True)
    grid = unequal_grid(moving)
    fixed = torch.rand(1, 8, *grid.size, requires_grad=True)

    with largest_tensor() as largest:
        window_cost(fixed, moving, grid).sum().backward()

    # the costs themselves, 60 x 120; the samples would be eight times as many
    assert largest.values <= max(60 * 120, 8 * 9 * 8 * 11)


def test_every_search_runs_on_it():
    generator = torch.Generator().manual_seed(0)
    fixed = 3 * torch.rand(1, 8, *SIZE, generator=generator)
    moving = fixed.roll((2, -1, 0), (2, 3, 4))
    grid = search_grid(SIZE, SIZE, (5, 3, 3), (2.0, 1.0, 1.0), fixed)

    cost = window_cost(sample_axes(fixed, grid.points), moving, grid)
    coarse_ddf = coupled_convex(DenseCostVolume(cost.flatten(1, 3), grid.displacements))

    inner = coarse_ddf[0, :, 3:-3, 3:-3, 3:-3]
    torch.testing.assert_close(inner, torch.tensor([2.0, -1, 0]).view(3, 1, 1, 1).expand_as(inner), atol=1e-5, rtol=0)


def test_half_precision_is_compared_in_float32():
    fixed, moving = torch.rand(2, 1, 5, *SIZE).half()
    grid = unequal_grid(fixed)

    cost = window_cost(sample_axes(fixed, grid.points).half(), moving, grid)

    assert cost.dtype == torch.float32
    expected = window_cost(sample_axes(fixed, grid.points).half().float(), moving.float(), grid)
    torch.testing.assert_close(cost, expected)


def test_features_that_are_not_at_the_control_points_are_refused():
    fixed, moving = torch.rand(2, 1, 5, *SIZE)

    with pytest.raises(ValueError, match="Sample the fixed ones by sample_axes"):
        window_cost(fixed, moving, unequal_grid(fixed))
