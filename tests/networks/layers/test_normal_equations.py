# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from monai_reg_ext.networks.layers.central_differences import central_differences
from monai_reg_ext.networks.layers.normal_equations import normal_equations
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.solve_normal_equations import solve_normal_equations
from monai_reg_ext.networks.layers.symmetric_matrix import matrices_of, symmetric_product
from monai_reg_ext.networks.layers.upsample_ddf import share_with_grid, upsample_ddf
from monai_reg_ext.networks.layers.warp import identity_grid

CASES = [((7, 9, 8), (2, 3, 4)), ((11, 6), (4, 2))]


def ramps(size, slopes, dtype=torch.float64):
    """Channels that rise linearly, one for each row of slopes."""
    places = identity_grid(size, torch.zeros(1)).to(dtype)
    return torch.tensordot(torch.tensor(slopes, dtype=dtype), places[0], dims=1)[None]


def by_hand(fixed, warped, spacing, weight=None):
    """The same from products of all channels at every voxel."""
    slopes = torch.stack(central_differences(warped), 1)
    blocks = torch.einsum("bacx,bdcx->badx", slopes.flatten(3), slopes.flatten(3))
    sides = -torch.einsum("bacx,bcx->bax", slopes.flatten(3), (warped - fixed).flatten(2))
    if weight is not None:
        blocks, sides = blocks * weight.flatten(1)[:, None, None], sides * weight.flatten(1)[:, None]
    size, axes = fixed.shape[2:], len(spacing)
    blocks = blocks.unflatten(-1, size).flatten(1, 2)
    shared = share_with_grid(blocks, spacing).unflatten(1, (axes, axes))
    return shared, share_with_grid(sides.unflatten(-1, size), spacing)


@pytest.mark.parametrize("size", [(4, 6, 5), (5, 3), (1, 4, 2)])
def test_central_differences_repeat_the_border(size):
    features = torch.randn(2, 3, *size, dtype=torch.float64)

    for dim, slope in enumerate(central_differences(features), start=2):
        last = features.shape[dim] - 1
        index = torch.arange(last + 1)
        after, before = (features.index_select(dim, (index + step).clamp(0, last)) for step in (1, -1))
        torch.testing.assert_close(slope, (after - before) / 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("size", "spacing"), CASES)
def test_products_are_shared_with_the_control_points(size, spacing, weighted):
    fixed, warped = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    weight = torch.rand(2, 1, *size, dtype=torch.float64) if weighted else None

    matrix, right_side = normal_equations(fixed, warped, spacing, weight=weight)

    expected_matrix, expected_right_side = by_hand(fixed, warped, spacing, weight)
    torch.testing.assert_close(matrices_of(matrix), expected_matrix)
    torch.testing.assert_close(right_side, expected_right_side)
    diagonal, same_right_side = normal_equations(fixed, warped, spacing, weight=weight, coupled=False)
    torch.testing.assert_close(diagonal, expected_matrix.diagonal(dim1=1, dim2=2).movedim(-1, 1))
    torch.testing.assert_close(same_right_side, right_side)


@pytest.mark.parametrize(("size", "spacing"), CASES)
def test_not_dense_averages_before_it_multiplies(size, spacing):
    fixed, warped = torch.randn(2, 2, 3, *size, dtype=torch.float64)

    matrix, right_side = normal_equations(fixed, warped, spacing, dense=False)

    slopes = [pool_to_grid(slope, spacing) for slope in central_differences(warped)]
    difference = pool_to_grid(warped - fixed, spacing)
    torch.testing.assert_close(matrix[:, 1], (slopes[0] * slopes[1]).sum(1))
    torch.testing.assert_close(right_side[:, 1], -(slopes[1] * difference).sum(1))
    on_voxels = [normal_equations(fixed, warped, [1] * len(size), dense=dense) for dense in (False, True)]
    for one, other in zip(*on_voxels, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dense", [True, False])
def test_a_translation_of_three_ramps_is_found_in_one_step(dense):
    size, shift = (9, 11, 10), torch.tensor([1.5, -2.0, 0.75], dtype=torch.float64)
    slopes = [[2.0, 0.5, 0.0], [-1.0, 1.5, 0.3], [0.2, 0.0, 3.0]]
    warped = ramps(size, slopes)
    # warped(x) = moving(x), and fixed(x) = moving(x + shift)
    fixed = warped + (torch.tensor(slopes, dtype=torch.float64) @ shift).view(1, 3, 1, 1, 1)
    inner = torch.zeros(1, 1, *size, dtype=torch.float64)
    inner[..., 1:-1, 1:-1, 1:-1] = 1  # central differences are halved at the border

    matrix, right_side = normal_equations(fixed, warped, (2, 3, 4), weight=inner, dense=dense)
    step = solve_normal_equations(matrix, right_side, 1e-3, tolerance=1e-10).values

    torch.testing.assert_close(step, shift.view(1, 3, 1, 1, 1).expand_as(step), rtol=1e-6, atol=1e-6)


def test_one_channel_moves_along_its_slope_and_components_by_themselves_go_too_far():
    size, slope = (8, 9, 10), torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    warped = ramps(size, [slope.tolist()])
    fixed = warped + 3.0  # to be met by moving one voxel along each axis
    inner = torch.zeros(1, 1, *size, dtype=torch.float64)
    inner[..., 1:-1, 1:-1, 1:-1] = 1

    together = normal_equations(fixed, warped, (2, 3, 2), weight=inner)
    with pytest.warns(UserWarning, match="without any gradient"):
        step = solve_normal_equations(*together, 0.1, tolerance=1e-8).values
    apart = normal_equations(fixed, warped, (2, 3, 2), weight=inner, coupled=False)
    step_apart = solve_normal_equations(*apart, 0.1, tolerance=1e-8).values

    torch.testing.assert_close(step, torch.ones_like(step), rtol=0, atol=1e-3)
    torch.testing.assert_close(step_apart, 3 * torch.ones_like(step), rtol=0, atol=1e-3)


def test_channels_are_not_added_up_before_they_are_squared():
    warped = ramps((6, 7, 8), [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    fixed = warped.roll(1, 2)

    matrix, _ = normal_equations(fixed, warped, (3, 3, 4))

    assert matrix[:, 0].min() > 0.4


def test_given_slopes_take_the_place_of_the_warped_features():
    fixed, warped = torch.randn(2, 1, 2, 6, 5, 7, dtype=torch.float64)
    slopes = central_differences(fixed)

    matrix, right_side = normal_equations(fixed, warped, (2, 2, 2), slopes)

    torch.testing.assert_close(matrix, normal_equations(warped, fixed, (2, 2, 2))[0])
    torch.testing.assert_close(right_side, -normal_equations(warped, fixed, (2, 2, 2))[1])


@pytest.mark.parametrize(("size", "spacing"), CASES)
def test_the_right_side_is_minus_the_gradient_and_the_matrix_no_less_than_the_curvature(size, spacing):
    """Of the linearised energy, over the control points of a field that is linear between them."""
    fixed, warped = torch.randn(2, 1, 2, *size, dtype=torch.float64)
    slopes = torch.stack(central_differences(warped), 1)

    def energy(field):
        ddf = upsample_ddf(field / torch.tensor(spacing).view(1, -1, *[1] * len(size)), spacing, size)
        left = warped - fixed + (slopes * ddf.unsqueeze(2)).sum(1)
        return left.square().sum() / 2 / torch.tensor(spacing).prod()

    matrix, right_side = normal_equations(fixed, warped, spacing)

    nothing = torch.zeros_like(right_side, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(energy(nothing), nothing)[0], -right_side)
    for _ in range(5):
        step = torch.randn_like(right_side)
        curvature = 2 * (energy(step) - energy(nothing) + (step * right_side).sum())
        counted = (symmetric_product(matrix, step) * step).sum()
        assert 0 < curvature <= counted
    even = torch.ones_like(right_side)
    curvature = 2 * (energy(even) - energy(nothing) + (even * right_side).sum())
    torch.testing.assert_close((symmetric_product(matrix, even) * even).sum(), curvature)


@pytest.mark.parametrize("dense", [True, False])
def test_its_gradients_are_right(dense):
    fixed, warped = torch.randn(2, 1, 2, 3, 4, 3, dtype=torch.float64)
    weight = torch.rand(1, 1, 3, 4, 3, dtype=torch.float64)

    assert gradcheck(
        lambda *given: normal_equations(*given, (2, 2, 3), weight=weight, dense=dense),
        (fixed.requires_grad_(), warped.requires_grad_()),
    )


def test_features_of_two_grids_are_refused():
    with pytest.raises(ValueError, match="on one grid"):
        normal_equations(torch.zeros(1, 2, 4, 5, 6), torch.zeros(1, 2, 4, 6, 5), (2, 2, 2))
