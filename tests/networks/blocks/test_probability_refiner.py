# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.probability_refiner import ProbabilityRefiner
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.diffusion import diffusion
from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution, field_on_cells
from monai_reg_ext.networks.layers.search_grid import search_grid

CELLS = (13, 11, 16)
GRID = search_grid(CELLS, (6, 5, 7), (5, 7, 5), (3.0, 2.0, 4.0), torch.zeros(1))
FEATURES = torch.zeros(1, 1, *CELLS)


def around(displacement: tuple[float, float, float], sharpness: float = 1.0) -> DisplacementDistribution:
    """The nearer a displacement, in steps, the more probable."""
    steps = (GRID.displacements - torch.tensor(displacement)) / GRID.step
    probabilities = (-sharpness * steps.square().sum(1)).softmax(0)
    everywhere = probabilities.view(1, *GRID.window, 1, 1, 1).expand(1, *GRID.window, *GRID.size)
    return DisplacementDistribution(everywhere.contiguous(), GRID)


def as_field(displacement: tuple[float, float, float], size: tuple[int, ...] = CELLS) -> torch.Tensor:
    return torch.tensor(displacement).view(1, 3, 1, 1, 1).expand(1, 3, *size)


def test_it_goes_where_displacements_are_probable():
    peak = (1.5, -2 / 3, 2.0)  # one of the window's

    ddf = ProbabilityRefiner(200, learning_rate=0.05)(FEATURES, FEATURES, as_field((0.0, 0.0, 0.0)), around(peak))

    torch.testing.assert_close(ddf, as_field(peak), atol=0.05, rtol=0)


def test_it_lowers_its_energy():
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.rand(1, *GRID.window, *GRID.size, generator=generator)
    distribution = DisplacementDistribution(logits.flatten(1, 3).softmax(1).view_as(logits), GRID)
    start = distribution.mean()

    def energy(field):
        return -distribution.at(field).mean() + 0.005 * diffusion(field / GRID.step.view(3, 1, 1, 1)).mean()

    smoothed, refined = (ProbabilityRefiner(n).at_points(distribution, start) for n in (0, 50))

    assert energy(refined) < energy(smoothed) - 0.001


def test_more_regularization_gives_smoother_fields():
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.rand(1, *GRID.window, *GRID.size, generator=generator)
    distribution = DisplacementDistribution(logits.flatten(1, 3).softmax(1).view_as(logits), GRID)

    rough, smooth = (
        diffusion(ProbabilityRefiner(50, regularization=weight).at_points(distribution)) for weight in (0.0, 0.05)
    )

    assert smooth < 0.5 * rough


@pytest.mark.parametrize("compat", [False, True])
def test_without_iterations_it_smooths_the_field(compat):
    start = torch.randn(1, 3, *CELLS)
    grid = search_grid(CELLS, CELLS, (3, 3, 3), (1, 1, 1), start)
    distribution = DisplacementDistribution(torch.full((1, 3, 3, 3, *CELLS), 1 / 27), grid)

    ddf = ProbabilityRefiner(0, smooth_widths=(3, 5), compat=compat)(FEATURES, FEATURES, start, distribution)

    torch.testing.assert_close(ddf, box_filter(start, (3, 5), compat), atol=1e-5, rtol=1e-5)


def test_it_starts_from_the_expected_displacement_where_nothing_else_is_given():
    distribution = around((1.0, 0.0, -1.0))

    found = ProbabilityRefiner(0).at_points(distribution)

    torch.testing.assert_close(found, distribution.mean(), atol=1e-5, rtol=1e-5)


def test_its_unit_is_the_step_between_displacements():
    # the same in a grid of cells twice, three times and half as large
    distribution, factor = around((1.2, -0.5, 3.0)), (2.0, 3.0, 0.5)

    found = ProbabilityRefiner(20).at_points(distribution.scaled(factor, (0, 0, 0)))

    expected = ProbabilityRefiner(20).at_points(distribution) * torch.tensor(factor).view(3, 1, 1, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_field_lies_on_the_cells_of_the_features():
    distribution = around((1.2, -0.5, 3.0))

    ddf = ProbabilityRefiner(10)(FEATURES, FEATURES, torch.zeros(1, 3, *CELLS), distribution)

    at_points = ProbabilityRefiner(10).at_points(distribution, torch.zeros(1, 3, *GRID.size))
    torch.testing.assert_close(ddf, field_on_cells(at_points, GRID, CELLS))


def test_it_works_in_inference_mode_and_leaves_the_graph():
    distribution = around((1.5, 0.0, 2.0))
    expected = ProbabilityRefiner(5).at_points(distribution)

    with torch.inference_mode():
        inside = ProbabilityRefiner(5).at_points(around((1.5, 0.0, 2.0)))
    learned = distribution._replace(probabilities=distribution.probabilities.requires_grad_())

    torch.testing.assert_close(inside.clone(), expected)
    assert not ProbabilityRefiner(5).at_points(learned).requires_grad
