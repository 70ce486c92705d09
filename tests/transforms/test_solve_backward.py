# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.invert_ddf import invert_ddf
from monai_reg_ext.networks.layers.jacobian import jacobian_determinant
from monai_reg_ext.networks.layers.warp import identity_grid
from monai_reg_ext.transforms.solve_backward import solve_backward

SIZE = (17, 14, 11)


def places(size):
    return identity_grid(size, torch.zeros(1)).flatten(2)[0].T.contiguous()


def stretch(factor: float) -> torch.Tensor:
    """x + ddf(x) = factor * x along every axis."""
    return (factor - 1) * identity_grid(SIZE, torch.zeros(1))[0]


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.6, 3.5])
def test_a_stretched_space_is_shrunk_back_however_much_it_was_stretched(factor):
    targets = factor * places(SIZE)

    points, distances = solve_backward(stretch(factor), targets)

    torch.testing.assert_close(points, places(SIZE), rtol=0, atol=2e-3)
    assert distances.max() < 1e-3


def test_fixed_point_iteration_fails_where_this_converges(smooth_ddf):
    # the slow twin agrees on a gentle field and diverges once the stretch passes 2
    gentle = smooth_ddf(SIZE, 1.5)
    torch.testing.assert_close(
        solve_backward(gentle, places(SIZE), tolerance=1e-5)[0].T.reshape(3, *SIZE),
        (identity_grid(SIZE, gentle) + invert_ddf(gentle[None]))[0],
        rtol=0,
        atol=1e-4,
    )
    twin = invert_ddf(stretch(3.5)[None], iterations=50)
    assert compose_ddf(stretch(3.5)[None], twin).abs().max() > 1


def test_every_place_that_a_strong_field_reaches_is_found_again(smooth_ddf):
    ddf = smooth_ddf(SIZE, 3.5)
    determinant = jacobian_determinant(ddf[None])
    assert determinant.min() > 0
    assert determinant.max() > 1.8
    reached = places(SIZE) + ddf.flatten(1).T

    points, distances = solve_backward(ddf, reached)

    assert distances.max() < 1e-3
    assert (points - places(SIZE)).norm(dim=1).max() < 0.02


def test_points_in_double_precision_are_solved_in_double_precision(smooth_ddf):
    targets = places(SIZE).double()[::7] + 0.3

    points, distances = solve_backward(smooth_ddf(SIZE), targets, tolerance=1e-6)

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
