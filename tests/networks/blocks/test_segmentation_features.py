# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

from monai_reg_ext.networks.blocks.segmentation_features import SegmentationFeatures
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid


class Pointwise(nn.Module):
    """Logits ``(0, w v)`` of every voxel; remembers the sizes it was given."""

    def __init__(self, weight=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen = []

    def forward(self, image):
        self.seen.append((tuple(image.shape[2:]), self.training))
        return torch.cat([torch.zeros_like(image), self.weight * image], 1)


def scan():
    """Something in an off-centre box of 3 x 4 x 6 voxels; nothing is at the minimum inside it."""
    image = torch.zeros(1, 1, 9, 10, 11)
    image[:, :, 2:5, 1:5, 4:10] = 0.1 + torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    return image


def test_probabilities_are_the_softmax_of_the_logits_and_certain_background_around_the_box():
    image = scan()

    features = SegmentationFeatures(Pointwise(), divisor=4)(image)

    inside = image > 0
    expected = torch.where(inside, torch.sigmoid(2 * image), 0.0)
    torch.testing.assert_close(features, torch.cat([1 - expected, expected], 1))


def test_the_network_gets_the_box_padded_to_what_it_can_divide():
    network = Pointwise()

    SegmentationFeatures(network, divisor=4)(scan())
    SegmentationFeatures(network, divisor=4, crop=False)(scan())

    assert [size for size, _ in network.seen] == [(4, 4, 8), (12, 12, 12)]


def test_each_image_of_a_batch_has_its_own_box():
    images = torch.cat([scan(), scan().flip(2)])
    features = SegmentationFeatures(Pointwise(), divisor=2)

    torch.testing.assert_close(features(images), torch.cat([features(image[None]) for image in images]))


def test_the_network_is_frozen_and_stays_in_evaluation_mode():
    network = Pointwise()
    features = SegmentationFeatures(network).train()

    found = features(scan().requires_grad_())

    assert features.training
    assert network.seen[-1][1] is False
    assert not network.weight.requires_grad
    assert not found.requires_grad


def test_a_constant_image_is_seen_whole():
    network = Pointwise()

    features = SegmentationFeatures(network, divisor=1)(torch.full((1, 1, 3, 4, 5), 0.5))

    assert network.seen[-1][0] == (3, 4, 5)
    torch.testing.assert_close(features[:, 1], torch.full((1, 3, 4, 5), torch.tensor(1.0).sigmoid().item()))


def test_cells_get_mean_probabilities():
    features = SegmentationFeatures(Pointwise())

    (pooled,) = features.pooled(scan(), [(2, 3, 4)])

    torch.testing.assert_close(pooled, pool_to_grid(features(scan()), (2, 3, 4)))
