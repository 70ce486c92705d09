# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.jacobian import jacobian_determinant
from monai_reg_ext.networks.layers.solve_backward import CELLS, REACH, _near, solve_backward
from monai_reg_ext.networks.layers.warp import identity_grid, warp

SIZE = (17, 14, 11)


def places(size):
    return identity_grid(size, torch.zeros(1)).flatten(2)[0].T.contiguous()


def stretch(factor: float) -> torch.Tensor:
    """x + ddf(x) = factor * x along every axis."""
    return (factor - 1) * identity_grid(SIZE, torch.zeros(1))[0]


def wavy(amplitude: float = 2.0) -> torch.Tensor:
    """Every component another smooth function of all axes, up to ``amplitude`` voxels."""
    i, j, k = torch.meshgrid(*[torch.linspace(0, 1, extent) for extent in SIZE], indexing="ij")
    return amplitude * torch.stack([(3 * i + j - k).sin(), (2 * j - 2 * i * k).cos(), (1 + 2 * k + i * j).sin()])


def fixed_point(ddf: torch.Tensor, iterations: int = 50) -> torch.Tensor:
    """The textbook's inverse: ``v <- -ddf(x + v)``, which converges where the field's slopes stay below 1."""
    inverse = -ddf
    for _ in range(iterations):
        inverse = -warp(ddf[None], inverse[None])[0]
    return inverse


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def _form(request, monkeypatch):
    """Every test with the compiled kernel, where there is one, and with torch alone."""
    monkeypatch.setenv("MONAI_REG_NUMBA", str(int(request.param == "compiled")))


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.6, 3.5])
def test_a_stretched_space_is_shrunk_back_however_much_it_was_stretched(factor):
    targets = factor * places(SIZE)

    points, distances = solve_backward(stretch(factor), targets)

    torch.testing.assert_close(points, places(SIZE), rtol=0, atol=2e-3)
    assert distances.max() < 1e-3


def test_fixed_point_iteration_agrees_on_a_gentle_field_and_fails_where_this_converges():
    gentle, strong = wavy(1.5), stretch(3.5)

    points, _ = solve_backward(gentle, places(SIZE), tolerance=1e-5)

    expected = identity_grid(SIZE, gentle)[0] + fixed_point(gentle)
    torch.testing.assert_close(points.T.reshape(3, *SIZE), expected, rtol=0, atol=1e-4)
    twin = fixed_point(strong)
    assert (twin + warp(strong[None], twin[None])[0]).abs().max() > 1


def test_every_place_that_a_strong_field_reaches_is_found_again():
    ddf = wavy(3.5)
    determinant = jacobian_determinant(ddf[None])
    assert determinant.min() > 0
    assert determinant.max() > 1.8
    reached = places(SIZE) + ddf.flatten(1).T

    points, distances = solve_backward(ddf, reached)

    assert distances.max() < 1e-3
    assert (points - places(SIZE)).norm(dim=1).max() < 0.02


def test_points_in_double_precision_are_solved_in_double_precision():
    targets = places(SIZE).double()[::7] + 0.3

    points, distances = solve_backward(wavy(), targets, tolerance=1e-6)

    assert points.dtype == distances.dtype == torch.float64
    assert distances.max() < 1e-5


def test_in_a_fold_some_point_is_found_and_places_beyond_reach_are_told_by_their_distance():
    ddf = torch.zeros(3, *SIZE)
    ddf[0] = -2 * (torch.arange(17.0) - 8).clamp(-3, 3)[:, None, None]  # mirrors the middle

    points, distances = solve_backward(ddf, torch.tensor([[8.0, 5.0, 5.0], [-30.0, 5.0, 5.0]]))

    assert distances[0] < 1e-3
    torch.testing.assert_close(points[1], torch.tensor([-36.0, 5.0, 5.0]), atol=1e-3, rtol=0)  # as at its border


def test_where_the_field_folds_places_that_voxels_reach_are_found_too():
    ddf = torch.nn.functional.interpolate(torch.randn(1, 3, 6, 5, 4), SIZE, mode="trilinear")[0] * 2.5
    assert (jacobian_determinant(ddf[None]) < 0).float().mean() > 0.1

    _, distances = solve_backward(ddf, places(SIZE) + ddf.flatten(1).T)

    assert (distances < 0.01).float().mean() > 0.99


def test_a_field_keeps_its_axes_of_unequal_strength():
    # slopes differ along every axis and in every component: a swapped index cannot pass
    matrix = torch.tensor([[0.8, 0.1, -0.05], [0.02, 1.3, 0.2], [-0.1, 0.03, 1.1]])
    middle = (torch.tensor(SIZE) - 1) / 2
    inside = places(SIZE)
    ddf = ((inside - middle) @ (matrix - torch.eye(3)).T).T.reshape(3, *SIZE)
    targets = (inside - middle) @ matrix.T + middle

    points, _ = solve_backward(ddf, targets[torch.randperm(len(targets))], tolerance=1e-4)

    order = (points @ torch.tensor([SIZE[1] * SIZE[2], SIZE[2], 1.0])).argsort()
    torch.testing.assert_close(points[order], inside, rtol=0, atol=1e-3)


def test_beyond_its_grid_the_field_goes_on_as_at_its_border():
    ddf = wavy()
    corner = ddf[:, -1, 0, -1]
    outside = torch.tensor([[SIZE[0] + 20.0, -15.0, SIZE[2] + 30.0]])

    points, distances = solve_backward(ddf, outside + corner)

    torch.testing.assert_close(points, outside, rtol=0, atol=1e-3)
    assert distances.max() < 1e-3


def test_no_points_have_no_origins():
    points, distances = solve_backward(wavy(), torch.zeros(0, 3))

    assert points.shape == (0, 3)
    assert distances.shape == (0,)


def test_the_start_beside_a_solved_neighbour_does_not_change_what_is_found():
    ddf = wavy(3.0)
    targets = places(SIZE)
    shuffled = torch.randperm(len(targets))

    in_order, _ = solve_backward(ddf, targets, tolerance=1e-4)
    alone, _ = solve_backward(ddf, targets[shuffled], tolerance=1e-4)

    torch.testing.assert_close(alone, in_order[shuffled], rtol=0, atol=1e-3)


def test_the_table_of_cells_finds_every_voxel_within_reach_and_none_far_away():
    # by brute force; so long an axis makes the cells along it larger than the reach
    extent = torch.tensor([900.0, 40.0, 60.0])
    targets = torch.rand(200, 3) * extent
    beside = targets.repeat(20, 1) + 8 * torch.rand(4000, 3) - 4
    positions = torch.cat([beside, (3 * torch.rand(4000, 3) - 1) * extent])

    near = _near(positions.T, targets.T)

    distances = (positions[:, None] - targets).abs()
    within = distances.norm(dim=2).amin(1) <= REACH
    edge = ((targets.amax(0) - targets.amin(0)) / CELLS).clamp(min=REACH)
    cells_away = (distances / edge).amax(2).amin(1)
    assert within.sum() > 500
    assert near[within].all()
    assert cells_away[near].max() <= 2.001
    assert near.float().mean() < 0.9
