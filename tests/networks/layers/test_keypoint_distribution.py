# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.losses import NonLocalFeatureLoss
from monai_reg_ext.networks.layers.keypoint_distribution import KeypointDistribution
from monai_reg_ext.networks.layers.sample_points import sample_points

SIZE = (11, 9, 14)
BINS = torch.cartesian_prod(
    torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.5, 0.0, 1.5])
)


def distribution(number=10):
    points = 3 + torch.rand(2, number, 3) * torch.tensor([4.0, 2.0, 7.0])
    return KeypointDistribution(torch.randn(2, number, 27).softmax(2), points, BINS)


def test_even_probabilities_expect_to_stay():
    even = distribution()._replace(probabilities=torch.full((2, 10, 27), 1 / 27))

    torch.testing.assert_close(even.mean(), torch.zeros(2, 10, 3), rtol=0, atol=1e-6)


def test_a_certain_displacement_is_expected():
    certain = distribution()._replace(probabilities=torch.eye(27)[None, :10].expand(2, -1, -1))

    torch.testing.assert_close(certain.mean(), BINS[None, :10].expand(2, -1, -1))


def test_points_expect_to_see_what_all_displacements_lead_to():
    pred, values = distribution(), torch.rand(2, 3, *SIZE)

    seen = pred.seen(values)

    expected = sum(
        pred.probabilities[:, :, label : label + 1] * sample_points(values, pred.points + shift)
        for label, shift in enumerate(BINS)
    )
    torch.testing.assert_close(seen, expected.mT, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pred.here(values), sample_points(values, pred.points).mT)


def test_it_is_as_rough_as_expected_displacements_of_nearest_neighbours_differ():
    points = torch.tensor([0.0, 1, 3, 6, 10, 15, 21, 28, 36]).view(1, 9, 1) * torch.tensor([1.0, 0, 0])
    certain = torch.zeros(1, 9, 27)
    certain[:, :, 13] = 1
    certain[:, 0] = torch.eye(27)[22]
    pred = KeypointDistribution(certain, points, BINS)

    # the first point goes a step further along axis 0 than all others
    assert BINS[[22, 13]].tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    # its seven neighbours differ from it; of eight others it is the farthest, and no neighbour, to those beyond 18
    expected = (7 + 5) / (9 * 7 * 3)
    assert pred.roughness().item() == pytest.approx(expected, rel=1e-4)


def test_another_unit_changes_points_and_displacements():
    pred = distribution()

    scaled = pred.scaled((2.0, 3.0, 0.5), (0.5, 1.0, -0.25))

    torch.testing.assert_close(scaled.points[..., 1], 3 * pred.points[..., 1] + 1)
    torch.testing.assert_close(scaled.mean(), pred.mean() * torch.tensor([2.0, 3.0, 0.5]))
    assert scaled.roughness().item() > 0


def test_the_non_local_loss_is_least_at_the_shift_of_the_images():
    scene = torch.rand(1, 1, 15, 13, 18)
    # fixed(x) = moving(x + (2, -1, 0))
    moving, fixed = scene[..., 2:13, 2:11, 2:16], scene[..., 4:15, 1:10, 2:16]
    images = torch.cat([moving, fixed], 1)
    points = torch.cartesian_prod(*[torch.arange(3.0, 6.0)] * 3)[None]
    shift = BINS.tolist().index([2.0, -1.0, 0.0])
    logits = torch.zeros(1, 27, 27, requires_grad=True)

    losses = []
    for label in range(27):
        certain = torch.eye(27)[label].expand(1, 27, -1)
        losses.append(
            NonLocalFeatureLoss(torch.nn.Identity())(KeypointDistribution(certain, points, BINS), images).item()
        )
    NonLocalFeatureLoss(torch.nn.Identity())(KeypointDistribution(logits.softmax(2), points, BINS), images).backward()

    assert losses.index(min(losses)) == shift
    assert min(losses) < 1e-10
    assert logits.grad.abs().amax((0, 1)).min() > 0


def test_the_roughness_is_added_to_the_loss():
    pred, images = distribution(), torch.rand(2, 2, *SIZE)

    plain, rough = (NonLocalFeatureLoss(torch.nn.Identity(), weight)(pred, images) for weight in (0.0, 0.5))

    torch.testing.assert_close(rough - plain, 0.5 * pred.roughness())


def test_in_float32_it_is_the_same_distribution():
    pred = distribution()
    half = pred._replace(probabilities=pred.probabilities.bfloat16())

    again = half.float()

    assert isinstance(again, KeypointDistribution)
    assert {part.dtype for part in again} == {torch.float32}
    torch.testing.assert_close(again.probabilities, half.probabilities.float())
