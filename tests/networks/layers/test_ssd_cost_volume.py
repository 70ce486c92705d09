# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.ssd_cost_volume import displacement_labels, ssd_cost_volume


def slow_labels(half_width):
    """Axis 0 fastest."""
    reach_0, reach_1, reach_2 = half_width
    return [
        (i, j, k)
        for k in range(-reach_2, reach_2 + 1)
        for j in range(-reach_1, reach_1 + 1)
        for i in range(-reach_0, reach_0 + 1)
    ]


def slow_cost(fixed, moving, half_width):
    """Plain loops over labels and positions, without smoothing; the outside of the moving image is 0."""
    size = fixed.shape[1:]
    cost = np.empty((len(slow_labels(half_width)), *size))
    for label, displacement in enumerate(slow_labels(half_width)):
        for position in itertools.product(*map(range, size)):
            target = tuple(np.add(position, displacement))
            inside = all(0 <= t < extent for t, extent in zip(target, size, strict=True))
            found = moving[(slice(None), *target)] if inside else 0
            cost[(label, *position)] = ((fixed[(slice(None), *position)] - found) ** 2).sum()
    return cost


@pytest.mark.parametrize("half_width", [(1, 2, 0), (2, 1, 3), (0, 0, 0)])
def test_labels_are_all_whole_displacements_with_axis_0_fastest(half_width):
    labels = displacement_labels(half_width, torch.zeros(1, dtype=torch.float64))

    assert labels.dtype == torch.float64
    assert [tuple(label) for label in labels.int().tolist()] == slow_labels(half_width)


@pytest.mark.parametrize("half_width", [(1, 2, 0), (2, 0, 1)])
def test_cost_is_the_squared_distance_to_the_displaced_features(half_width):
    fixed, moving = torch.randn(2, 2, 3, 4, 5, 3)

    cost = ssd_cost_volume(fixed, moving, half_width, smooth_widths=())

    for item in range(2):
        slow = slow_cost(fixed[item].numpy(), moving[item].numpy(), half_width)
        np.testing.assert_allclose(cost[item].numpy(), slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_cost_is_smoothed_over_space_and_not_over_labels(compat):
    fixed, moving = torch.randn(2, 1, 3, 5, 6, 4)

    cost = ssd_cost_volume(fixed, moving, (1, 1, 1), (3, 5), compat)

    raw = ssd_cost_volume(fixed, moving, (1, 1, 1), ())
    torch.testing.assert_close(cost, box_filter(raw, (3, 5), compat))


def test_leaving_the_image_costs_all_feature_energy():
    fixed = torch.randn(1, 4, 3, 4, 5)

    cost = ssd_cost_volume(fixed, torch.randn(1, 4, 3, 4, 5), (3, 0, 0), smooth_widths=())

    torch.testing.assert_close(cost[:, 0], fixed.square().sum(1))  # three cells to the left of a grid of three


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_type_of_the_features_is_kept(dtype):
    fixed, moving = torch.randn(2, 1, 3, 5, 6, 4).to(dtype)

    assert ssd_cost_volume(fixed, moving, (1, 1, 1)).dtype == dtype


def test_features_can_be_learned_through_the_cost():
    fixed, moving = torch.randn(2, 1, 2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda f, m: ssd_cost_volume(f, m, (1, 0, 1)), (fixed, moving))


def test_golden_labels_cost_and_argmin(golden_convex):
    golden = golden_convex

    cost = ssd_cost_volume(golden["fixed"], golden["moving"], golden["half_width"], compat=True)

    torch.testing.assert_close(displacement_labels(golden["half_width"], cost), golden["labels"])
    torch.testing.assert_close(cost, golden["cost"], rtol=0, atol=1e-5)
    assert torch.equal(cost.argmin(1), golden["argmin"])
