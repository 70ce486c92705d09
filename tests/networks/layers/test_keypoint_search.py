# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers import NeighbourGraph, graph_convex, keypoint_cost, sample

LABELS = [torch.linspace(-reach, reach, number) for reach, number in ((1.0, 3), (2.0, 5), (1.5, 4))]


@pytest.mark.parametrize("patch", [0.0, 1.5])
def test_one_displacement_and_patch_point_after_the_other_gives_the_same_costs(patch):
    fixed, moving = torch.randn(1, 4, 9, 8, 10), torch.randn(1, 4, 11, 9, 8)
    points, start = torch.rand(5, 3) * 7, torch.randn(5, 3)

    cost = keypoint_cost(fixed, moving, points, LABELS, start, patch)

    def at(volume, place):
        return sample(volume, place.view(1, 3, 1, 1, 1)).flatten()

    unit = patch * torch.eye(3)
    offsets = [torch.zeros(3), *unit, *-unit] if patch else [torch.zeros(3)]
    for number, (point, offset_of_point) in enumerate(zip(points, start, strict=True)):
        for a, b, c in ((0, 0, 0), (2, 1, 3), (1, 4, 2)):
            label = torch.stack([LABELS[0][a], LABELS[1][b], LABELS[2][c]])
            there = [at(moving, point + offset_of_point + offset + label) for offset in offsets]
            here = [at(fixed, point + offset) for offset in offsets]
            squares = [(x - y).square().sum() for x, y in zip(here, there, strict=True)]
            assert cost[number, a, b, c].item() == pytest.approx(torch.stack(squares).mean().item(), rel=1e-4)


def test_a_shifted_scene_costs_nothing_at_its_shift(shifted_pair):
    moving, fixed = shifted_pair((20, 22, 19), (1, -2, 0))
    points = torch.rand(6, 3) * 8 + 6
    labels = [torch.arange(-2.0, 3.0)] * 3

    cost = keypoint_cost(fixed, moving, points, labels)

    best = cost.flatten(1).argmin(1)
    assert torch.equal(torch.cartesian_prod(*labels)[best], torch.tensor([1.0, -2, 0]).expand(6, 3))


def _bowls(centres):
    """Costs of squared distances from a best displacement of each point."""
    displacements = torch.cartesian_prod(*LABELS)
    return torch.cdist(centres, displacements).square().unflatten(1, [len(axis) for axis in LABELS])


def test_a_point_of_two_minds_follows_its_neighbours():
    points = torch.randn(30, 3)
    cost = _bowls(torch.tensor([0.6, -1.0, 0.5]).expand(30, 3))
    cost[7] = torch.minimum(cost[7], _bowls(torch.tensor([[-1.0, 2.0, -1.5]]))[0] - 0.1)
    graph = NeighbourGraph(points, 6)

    alone = graph_convex(cost, LABELS, graph, (0.0,), sharpness=50)
    agreed = graph_convex(cost, LABELS, graph, (0.1, 0.5), sharpness=50)

    torch.testing.assert_close(alone[7], torch.tensor([-1.0, 2.0, -1.5]), atol=0.02, rtol=0)
    # the label nearest to what its neighbours found
    torch.testing.assert_close(agreed[7], torch.tensor([1.0, -1.0, 0.5]), atol=0.02, rtol=0)


def test_expected_displacements_lie_between_the_labels():
    centres = torch.tensor([[0.3, -0.6, 0.2], [-0.4, 0.5, -0.3], [0.0, 0.25, 0.5]])

    found = graph_convex(_bowls(centres), LABELS, NeighbourGraph(torch.randn(3, 3)), (0.0,), sharpness=2.0)

    torch.testing.assert_close(found, centres, atol=0.15, rtol=0)


def test_neighbours_pull_by_the_coupling():
    # costs |d - m|^2 + c |d - u|^2 are least at (m + c u) / (1 + c)
    points, centres = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([[0.5, 0.0, 0.5], [-0.5, 1.0, -0.5]])
    fine = [torch.linspace(-1.5, 1.5, 31)] * 3
    cost = torch.cdist(centres, torch.cartesian_prod(*fine)).square().unflatten(1, (31, 31, 31))

    found = graph_convex(cost, fine, NeighbourGraph(points), (1.0,), sharpness=200)

    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 0.0]] * 2), atol=0.03, rtol=0)
