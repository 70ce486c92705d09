# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.displacement_distribution import (
    DisplacementDistribution,
    expected_displacement,
    field_on_cells,
)
from monai_reg_ext.networks.layers.search_grid import search_grid
from monai_reg_ext.networks.layers.warp import sample

GRID = search_grid((12, 10, 9), (3, 2, 4), (3, 5, 2), (2.0, 1.5, 3.0), torch.zeros(1))


def test_mean_and_covariance_are_those_of_the_displacements():
    probabilities = torch.rand(2, 30, 24).softmax(1).view(2, *GRID.window, *GRID.size)

    distribution = DisplacementDistribution(probabilities, GRID)

    weights = probabilities.flatten(1, 3)[1, :, 1, 0, 2]
    mean = (weights[:, None] * GRID.displacements).sum(0)
    centred = GRID.displacements - mean
    covariance = torch.einsum("l,la,lb->ab", weights, centred, centred)
    torch.testing.assert_close(distribution.mean()[1, :, 1, 0, 2], mean)
    expected = covariance[torch.triu_indices(3, 3).unbind()]
    torch.testing.assert_close(distribution.covariance()[1, :, 1, 0, 2], expected, atol=1e-5, rtol=1e-5)


def test_a_certain_displacement_is_the_mean_without_covariance():
    probabilities = torch.zeros(1, *GRID.window, *GRID.size)
    probabilities[:, 2, 0, 1] = 1

    distribution = DisplacementDistribution(probabilities, GRID)

    mean = torch.tensor([2.0, -1.5, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 2, 4)
    torch.testing.assert_close(distribution.mean(), mean)
    assert distribution.covariance().abs().max() < 1e-5


def test_the_expected_displacement_needs_no_probabilities(largest_tensor):
    cost = 5 * torch.rand(2, *GRID.window, *GRID.size)

    found = expected_displacement(cost, GRID)

    probabilities = (-cost.flatten(1, 3)).softmax(1).view_as(cost)
    torch.testing.assert_close(found, DisplacementDistribution(probabilities, GRID).mean(), atol=1e-5, rtol=1e-5)


def test_a_linear_field_stays_linear_between_the_points_and_constant_beyond():
    # points at 1.5, 5.5, 9.5; at 2, 7; at 0.625, 2.875, 5.125, 7.375
    points = torch.stack(torch.meshgrid(*GRID.points, indexing="ij"))[None]

    found = field_on_cells(points, GRID, (12, 10, 9))

    cells = [
        torch.arange(12.0).clamp(1.5, 9.5),
        torch.arange(10.0).clamp(2, 7),
        torch.arange(9.0).clamp(0.625, 7.375),
    ]
    torch.testing.assert_close(found, torch.stack(torch.meshgrid(*cells, indexing="ij"))[None])


def test_one_point_is_valid_everywhere():
    grid = search_grid((12, 10, 9), (1, 1, 1), (3, 3, 3), (1, 1, 1), torch.zeros(1))

    found = field_on_cells(torch.rand(1, 3, 1, 1, 1), grid, (12, 10, 9))

    assert (found == found[:, :, :1, :1, :1]).all()


def test_the_probability_of_a_field_is_interpolated_between_displacements():
    probabilities = torch.rand(2, *GRID.window, *GRID.size)
    field = 2 * torch.randn(2, 3, *GRID.size, requires_grad=True)

    found = DisplacementDistribution(probabilities, GRID).at(field)

    # the reference's way: each point's window is an image of its own, sampled at one place
    windows = probabilities.flatten(4).movedim(-1, 1).flatten(0, 1)[:, None]
    steps = (field - torch.tensor([-2.0, -1.5, -3]).view(3, 1, 1, 1)) / torch.tensor([2, 0.75, 6]).view(3, 1, 1, 1)
    places = steps.flatten(2).movedim(-1, 1).reshape(-1, 3, 1, 1, 1)
    expected = sample(windows, places, padding="zeros").view(2, *GRID.size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    slopes = torch.randn(found.shape)
    gradients = [torch.autograd.grad(result, field, slopes, retain_graph=True)[0] for result in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_outside_of_the_window_a_field_is_impossible():
    distribution = DisplacementDistribution(torch.ones(1, *GRID.window, *GRID.size), GRID)

    for far in ([-4.1, 0, 0], [0, 2.3, 0], [0, 0, 9.1]):
        assert (distribution.at(torch.tensor(far).view(1, 3, 1, 1, 1).expand(1, 3, *GRID.size)) == 0).all()


def test_all_displacements_may_lie_around_an_offset():
    probabilities = torch.rand(1, 30, 24).softmax(1).view(1, *GRID.window, *GRID.size)
    offset, field = torch.randn(2, 1, 3, *GRID.size)
    plain, moved = DisplacementDistribution(probabilities, GRID), DisplacementDistribution(probabilities, GRID, offset)

    torch.testing.assert_close(moved.mean(), plain.mean() + offset)
    torch.testing.assert_close(moved.covariance(), plain.covariance())
    torch.testing.assert_close(moved.at(field + offset), plain.at(field), atol=1e-5, rtol=1e-5)
