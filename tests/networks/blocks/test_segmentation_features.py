# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from monai_reg_ext.networks.blocks.segmentation_features import SegmentationFeatures
from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures


class Pointwise(nn.Module):
    """Logits ``(0.5, v)`` of every voxel: class 1 above 0.5; remembers what it was given, and how it was run."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.seen = []
        self.modes = []

    def forward(self, image):
        self.seen.append(image)
        self.modes.append({"training": self.training, "gradients": torch.is_grad_enabled()})
        return torch.cat([torch.full_like(image, 0.5), self.weight * image], 1)


def scan(seed=0, brightness=1.0):
    """Something in an off-centre box of 3 x 4 x 6 voxels; nothing is at the minimum inside it."""
    image = torch.zeros(1, 1, 9, 10, 11)
    image[:, :, 2:5, 1:5, 4:10] = 0.1 + brightness * torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return image


def test_every_voxel_gets_the_label_of_the_largest_channel():
    image = scan()

    segmented = SegmentationFeatures(Pointwise(), labels=(0, 4), divisor=4).segment(image)

    assert segmented.dtype == torch.int32
    torch.testing.assert_close(segmented, 4 * (image > 0.5).int())
    assert 0 < (segmented == 4).sum() < 72


@pytest.mark.parametrize("compat", [False, True])
def test_features_are_the_semantic_ones_of_the_segmented_images(compat):
    fixed, moving = scan(), scan(1, brightness=0.5)
    features = SegmentationFeatures(Pointwise(), labels=(0, 4), scale=3.0, exponent=0.4)
    semantic = SemanticFeatures(3.0, 0.4, labels=(0, 4))
    labels = [4 * (image > 0.5).int() for image in (fixed, moving)]
    grids = [(2, 3, 4), (1, 2, 2)]

    torch.testing.assert_close(features(fixed), semantic(labels[0]))
    torch.testing.assert_close(features.pooled(fixed, grids, compat), semantic.pooled(labels[0], grids, compat))
    torch.testing.assert_close(
        features.pooled_pair(fixed, moving, grids, compat), semantic.pooled_pair(*labels, grids, compat)
    )


def test_a_label_that_no_voxel_has_keeps_its_channel():
    features = SegmentationFeatures(Pointwise(), labels=(0, 4), scale=3.0)(scan(brightness=0.3))

    assert (features[:, 0] == 3).all()
    assert (features[:, 1] == 0).all()


def test_the_network_gets_the_box_padded_to_what_it_can_divide():
    network = Pointwise()

    SegmentationFeatures(network, (0, 1), divisor=4)(scan())
    SegmentationFeatures(network, (0, 1), divisor=4, crop=False)(scan())

    assert [tuple(image.shape[2:]) for image in network.seen] == [(4, 4, 8), (12, 12, 12)]
    padded = np.pad(scan()[0, 0, 2:5, 1:5, 4:10].numpy(), [(0, 1), (0, 0), (0, 2)], mode="edge")
    np.testing.assert_array_equal(network.seen[0][0, 0].numpy(), padded)


@pytest.mark.parametrize("air", [-1000.0, 7.0])
def test_the_box_is_where_the_image_is_above_its_minimum_whatever_that_is(air):
    network = Pointwise()

    SegmentationFeatures(network, (0, 1), divisor=1)(air + scan())

    torch.testing.assert_close(network.seen[0], air + scan()[:, :, 2:5, 1:5, 4:10])


def test_beyond_the_box_all_is_background_though_the_network_would_not_say_so():
    image = 7 + scan()  # class 1 everywhere

    segmented = SegmentationFeatures(Pointwise(), (0, 1)).segment(image)

    torch.testing.assert_close(segmented, (scan() > 0).int())
    assert SegmentationFeatures(Pointwise(), (0, 1), crop=False).segment(image).all()


def test_each_image_of_a_batch_has_its_own_box():
    images = torch.cat([scan(), scan().flip(2)])
    features = SegmentationFeatures(Pointwise(), (0, 1), divisor=2)

    torch.testing.assert_close(features.segment(images), torch.cat([features.segment(image[None]) for image in images]))


def test_the_network_is_in_evaluation_mode_from_the_start():
    network = Pointwise()

    SegmentationFeatures(network, (0, 1))(scan())

    assert network.modes[-1]["training"] is False


def test_the_network_is_frozen_and_stays_in_evaluation_mode():
    network = Pointwise()
    features = SegmentationFeatures(network, (0, 1)).train()

    found = features(scan().requires_grad_())

    assert features.training
    assert network.modes == [{"training": False, "gradients": False}]
    assert not network.weight.requires_grad
    assert not found.requires_grad


def test_a_constant_image_is_seen_whole():
    network = Pointwise()

    segmented = SegmentationFeatures(network, (0, 1), divisor=1).segment(torch.full((1, 1, 3, 4, 5), 0.7))

    assert network.seen[-1].shape[2:] == (3, 4, 5)
    assert segmented.all()


@pytest.mark.parametrize("labels", [(0,), (0, 1, 2)])
def test_a_network_of_other_classes_is_refused(labels):
    with pytest.raises(ValueError, match=rf"2 channels for {len(labels)} labels \[0"):
        SegmentationFeatures(Pointwise(), labels)(scan())
