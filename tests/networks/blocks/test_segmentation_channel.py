# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from monai_reg_ext.networks.blocks.segmentation_channel import SegmentationChannel


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


def label_map(image, labels, **options):
    return SegmentationChannel(Pointwise(), labels, keep_image=False, **options)(image)


def test_every_voxel_gets_the_label_of_the_largest_channel():
    image = scan()

    segmented = label_map(image, (0, 4), divisor=4)

    torch.testing.assert_close(segmented, 4.0 * (image > 0.5))
    assert 0 < (segmented == 4).sum() < 72


def test_the_label_map_stands_behind_the_image():
    image = scan()

    both = SegmentationChannel(Pointwise(), (0, 4))(image)

    assert torch.equal(both[:, :1], image)
    assert torch.equal(both[:, 1:], label_map(image, (0, 4)))


def test_the_network_gets_the_box_padded_to_what_it_can_divide():
    network = Pointwise()

    SegmentationChannel(network, (0, 1), divisor=4)(scan())
    SegmentationChannel(network, (0, 1), divisor=4, crop=False)(scan())

    assert [tuple(image.shape[2:]) for image in network.seen] == [(4, 4, 8), (12, 12, 12)]
    padded = np.pad(scan()[0, 0, 2:5, 1:5, 4:10].numpy(), [(0, 1), (0, 0), (0, 2)], mode="edge")
    np.testing.assert_array_equal(network.seen[0][0, 0].numpy(), padded)


@pytest.mark.parametrize("air", [-1000.0, 7.0])
def test_the_box_is_where_the_image_is_above_its_minimum_whatever_that_is(air):
    network = Pointwise()

    SegmentationChannel(network, (0, 1), divisor=1)(air + scan())

    torch.testing.assert_close(network.seen[0], air + scan()[:, :, 2:5, 1:5, 4:10])


def test_beyond_the_box_all_is_background_though_the_network_would_not_say_so():
    image = 7 + scan()  # class 1 everywhere

    torch.testing.assert_close(label_map(image, (0, 1)), (scan() > 0).float())
    assert label_map(image, (0, 1), crop=False).all()


def test_each_image_of_a_batch_has_its_own_box():
    images = torch.cat([scan(), scan().flip(2)])

    of_each = torch.cat([label_map(image[None], (0, 1), divisor=2) for image in images])
    torch.testing.assert_close(label_map(images, (0, 1), divisor=2), of_each)


def test_the_network_is_in_evaluation_mode_from_the_start():
    network = Pointwise()

    SegmentationChannel(network, (0, 1))(scan())

    assert network.modes[-1]["training"] is False


def test_the_network_is_frozen_and_stays_in_evaluation_mode():
    network = Pointwise()
    channel = SegmentationChannel(network, (0, 1)).train()

    found = channel(scan().requires_grad_())

    assert channel.training
    assert network.modes == [{"training": False, "gradients": False}]
    assert not network.weight.requires_grad
    assert not found.requires_grad


def test_a_constant_image_is_seen_whole():
    network = Pointwise()

    both = SegmentationChannel(network, (0, 1), divisor=1)(torch.full((1, 1, 3, 4, 5), 0.7))

    assert network.seen[-1].shape[2:] == (3, 4, 5)
    assert both[:, 1].all()


@pytest.mark.parametrize("labels", [(0,), (0, 1, 2)])
def test_a_network_of_other_classes_is_refused(labels):
    with pytest.raises(ValueError, match=rf"2 channels for {len(labels)} labels \[0"):
        SegmentationChannel(Pointwise(), labels)(scan())
