# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_reg_ext.networks.blocks.segmentation_features import SegmentationFeatures
from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures


class Pointwise(nn.Module):
    """Logits ``(0.5, v)`` of every voxel: class 1 above 0.5; remembers the sizes it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.seen = []

    def forward(self, image):
        self.seen.append((tuple(image.shape[2:]), self.training))
        return torch.cat([torch.full_like(image, 0.5), self.weight * image], 1)


def scan():
    """Something in an off-centre box of 3 x 4 x 6 voxels; nothing is at the minimum inside it."""
    image = torch.zeros(1, 1, 9, 10, 11)
    image[:, :, 2:5, 1:5, 4:10] = 0.1 + torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    return image


def test_every_voxel_gets_the_label_of_the_largest_channel():
    image = scan()

    segmented = SegmentationFeatures(Pointwise(), labels=(0, 4), divisor=4).segment(image)

    assert segmented.dtype == torch.int32
    torch.testing.assert_close(segmented, 4 * (image > 0.5).int())
    assert 0 < (segmented == 4).sum() < 72


def test_features_are_the_semantic_ones_of_the_segmented_images():
    fixed, moving = scan(), scan().flip(2)
    features = SegmentationFeatures(Pointwise(), labels=(0, 4), scale=3.0, exponent=0.4)
    semantic = SemanticFeatures(3.0, 0.4, labels=(0, 4))
    labels = [4 * (image > 0.5).int() for image in (fixed, moving)]
    grids = [(2, 3, 4), (1, 2, 2)]

    torch.testing.assert_close(features(fixed), semantic(labels[0]))
    torch.testing.assert_close(features.pooled(fixed, grids), semantic.pooled(labels[0], grids))
    torch.testing.assert_close(features.pooled_pair(fixed, moving, grids), semantic.pooled_pair(*labels, grids))


def test_the_network_gets_the_box_padded_to_what_it_can_divide():
    network = Pointwise()

    SegmentationFeatures(network, (0, 1), divisor=4)(scan())
    SegmentationFeatures(network, (0, 1), divisor=4, crop=False)(scan())

    assert [size for size, _ in network.seen] == [(4, 4, 8), (12, 12, 12)]


def test_each_image_of_a_batch_has_its_own_box():
    images = torch.cat([scan(), scan().flip(2)])
    features = SegmentationFeatures(Pointwise(), (0, 1), divisor=2)

    torch.testing.assert_close(features.segment(images), torch.cat([features.segment(image[None]) for image in images]))


def test_the_network_is_frozen_and_stays_in_evaluation_mode():
    network = Pointwise()
    features = SegmentationFeatures(network, (0, 1)).train()

    found = features(scan().requires_grad_())

    assert features.training
    assert network.seen[-1][1] is False
    assert not network.weight.requires_grad
    assert not found.requires_grad


def test_a_constant_image_is_seen_whole():
    network = Pointwise()

    segmented = SegmentationFeatures(network, (0, 1), divisor=1).segment(torch.full((1, 1, 3, 4, 5), 0.7))

    assert network.seen[-1][0] == (3, 4, 5)
    assert segmented.all()


def test_a_network_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"2 channels for 3 labels \[0, 1, 2\]"):
        SegmentationFeatures(Pointwise(), (0, 1, 2))(scan())
