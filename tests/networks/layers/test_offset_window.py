# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.offset_window import offset_window_cost, offset_window_mean
from monai_reg_ext.networks.layers.sample_axes import sample_axes
from monai_reg_ext.networks.layers.search_grid import SearchGrid, search_grid
from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.networks.layers.window_cost import window_cost
from monai_reg_ext.networks.layers.window_mean import window_mean

SIZE = (9, 8, 11)


def unequal_grid() -> SearchGrid:
    return search_grid(SIZE, (4, 6, 5), (3, 1, 4), (2.2, 0.0, 1.7), torch.zeros(1))


def test_without_an_offset_they_are_the_separable_ones():
    grid, nowhere = unequal_grid(), torch.zeros(2, 3, 4, 6, 5)
    fixed, moving = torch.rand(2, 2, 5, *SIZE)
    fixed = sample_axes(fixed, grid.points)
    weights = torch.rand(2, *grid.window, *grid.size)

    torch.testing.assert_close(
        offset_window_cost(fixed, moving, grid, nowhere), window_cost(fixed, moving, grid), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        offset_window_mean(weights, moving, grid, nowhere), window_mean(weights, moving, grid), atol=1e-5, rtol=1e-5
    )


def test_every_point_looks_around_its_own_offset():
    grid, offset = unequal_grid(), 3 * torch.randn(2, 3, 4, 6, 5)
    fixed, moving = torch.rand(2, 5, *unequal_grid().size), torch.rand(2, 5, *SIZE)
    weights = torch.rand(2, *grid.window, *grid.size)

    cost = offset_window_cost(fixed, moving, grid, offset)
    mean = offset_window_mean(weights, moving, grid, offset)

    points = torch.stack(torch.meshgrid(*grid.points, indexing="ij"))
    shifted = points + torch.stack([grid.labels[0][2], grid.labels[1][0], grid.labels[2][1]]).view(3, 1, 1, 1)
    seen = sample(moving, shifted + offset)
    torch.testing.assert_close(cost[:, 2, 0, 1], (fixed - seen).square().sum(1))
    alone = torch.zeros_like(weights)
    alone[:, 2, 0, 1] = weights[:, 2, 0, 1]
    torch.testing.assert_close(offset_window_mean(alone, moving, grid, offset), weights[:, 2, 0, 1, None] * seen)
    assert mean.shape == (2, 5, 4, 6, 5)


def test_their_gradients_are_those_of_the_separable_ones():
    grid, nowhere = unequal_grid(), torch.zeros(1, 3, 4, 6, 5)
    fixed = torch.rand(1, 5, *grid.size, requires_grad=True)
    moving = torch.rand(1, 5, *SIZE, requires_grad=True)
    weights = torch.rand(1, *grid.window, *grid.size, requires_grad=True)
    slopes = torch.randn(weights.shape), torch.randn(fixed.shape)

    def gradients(cost, mean):
        of_cost = torch.autograd.grad(cost, (fixed, moving), slopes[0])
        return *of_cost, torch.autograd.grad(mean, weights, slopes[1])[0]

    found = gradients(
        offset_window_cost(fixed, moving, grid, nowhere), offset_window_mean(weights, moving, grid, nowhere)
    )

    expected = gradients(window_cost(fixed, moving, grid), window_mean(weights, moving, grid))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_samples_of_all_displacements_are_not_kept(largest_tensor):
    grid, nowhere = unequal_grid(), torch.zeros(1, 3, 4, 6, 5)
    fixed, moving = torch.rand(1, 8, *grid.size, requires_grad=True), torch.rand(1, 8, *SIZE)

    with largest_tensor() as largest:
        offset_window_cost(fixed, moving, grid, nowhere).sum().backward()

    # costs of 12 displacements at 120 points; samples would be eight times as many
    assert largest.values <= max(12 * 120, 8 * 9 * 8 * 11)
