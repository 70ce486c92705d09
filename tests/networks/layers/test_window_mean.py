# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import pytest
import torch

from monai_reg_ext.networks.layers.search_grid import SearchGrid, search_grid
from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.networks.layers.window_mean import window_mean

SIZE = (9, 8, 11)
SLABS = importlib.import_module("monai_reg_ext.networks.layers.window_cost")


@pytest.fixture(params=["compiled", "torch", "thin slabs"])
def forms(request, monkeypatch):
    monkeypatch.setenv("MONAI_REG_NUMBA", str(int(request.param == "compiled")))
    if request.param == "thin slabs":
        monkeypatch.setattr(SLABS, "_CPU_SLAB", 1)


def unequal_grid() -> SearchGrid:
    return search_grid(SIZE, (4, 6, 5), (3, 5, 4), (2.2, 3.1, 1.7), torch.zeros(1))


def laid_out(probabilities: torch.Tensor, values: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    """With the samples of all displacements at once."""
    points = torch.stack(torch.meshgrid(*grid.points, indexing="ij")).expand(len(values), -1, -1, -1, -1)
    samples = [sample(values, points + displacement.view(3, 1, 1, 1)) for displacement in grid.displacements]
    return (probabilities.flatten(1, 3)[:, :, None] * torch.stack(samples, 1)).sum(1)


def test_it_is_the_mean_of_what_is_seen(forms):
    grid = unequal_grid()
    probabilities, values = torch.rand(2, *grid.window, *grid.size), torch.randn(2, 3, *SIZE)

    mean = window_mean(probabilities, values, grid)

    assert mean.shape == (2, 3, 4, 6, 5)
    torch.testing.assert_close(mean, laid_out(probabilities, values, grid), atol=2e-5, rtol=1e-5)


def test_its_gradient_is_that_of_the_laid_out_form(forms):
    grid = unequal_grid()
    probabilities = torch.rand(2, *grid.window, *grid.size, requires_grad=True)
    values, weights = torch.randn(2, 3, *SIZE), torch.randn(2, 3, *grid.size)

    (found,) = torch.autograd.grad((window_mean(probabilities, values, grid) * weights).sum(), probabilities)

    (expected,) = torch.autograd.grad((laid_out(probabilities, values, grid) * weights).sum(), probabilities)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_its_gradient_is_right(monkeypatch):
    monkeypatch.setattr(SLABS, "_CPU_SLAB", 1)
    grid = search_grid((4, 3, 5), (2, 3, 1), (2, 1, 3), (1.2, 0.0, 1.7), torch.zeros(1, dtype=torch.float64))
    probabilities = torch.rand(2, *grid.window, *grid.size, dtype=torch.float64, requires_grad=True)
    values = torch.rand(2, 2, 4, 3, 5, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda weights: window_mean(weights, values, grid), probabilities)


def test_values_of_all_displacements_never_exist_at_once(monkeypatch, largest_tensor):
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")
    monkeypatch.setattr(SLABS, "_CPU_SLAB", 1)
    grid = unequal_grid()
    probabilities = torch.rand(1, *grid.window, *grid.size, requires_grad=True)
    values = torch.rand(1, 8, *SIZE)

    with largest_tensor() as largest:
        window_mean(probabilities, values, grid).sum().backward()

    # the probabilities, 60 x 120, and the values; laid out there would be eight times as many
    assert largest.values <= max(60 * 120, values.numel())


def test_all_weight_on_one_displacement_moves_the_values(forms):
    grid = search_grid(SIZE, SIZE, (3, 1, 5), (1.0, 0.0, 4.0), torch.zeros(1))
    probabilities, values = torch.zeros(1, *grid.window, *grid.size), torch.rand(1, 2, *SIZE)
    probabilities[:, 2, 0, 1] = 1

    mean = window_mean(probabilities, values, grid)

    # one cell on along axis 0, two back along axis 2
    torch.testing.assert_close(mean[:, :, :-1, :, 2:], values[:, :, 1:, :, :-2], atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_fit_the_grid_are_refused():
    grid = unequal_grid()

    with pytest.raises(ValueError, match="one for every displacement at every control point"):
        window_mean(torch.rand(1, *grid.size, *grid.window), torch.rand(1, 2, *SIZE), grid)
