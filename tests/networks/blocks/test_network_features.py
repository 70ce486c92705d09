# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet

from monai_reg_ext.networks.blocks import NetworkFeatures


class Shown(torch.nn.Module):
    """Gives what it is shown, which must have multiples of 4 along each axis."""

    def forward(self, image):
        assert all(extent % 4 == 0 for extent in image.shape[2:])
        return 2 * image


@pytest.mark.parametrize("size", [(9, 12, 7), (8, 4, 16), (1, 2, 3)])
def test_images_of_any_size_have_features_of_their_own_voxels(size):
    image = torch.rand(2, 1, *size)

    torch.testing.assert_close(NetworkFeatures(Shown(), divisor=4)(image), 2 * image)


def test_what_is_added_repeats_the_border():
    class Mean(torch.nn.Module):
        def forward(self, image):
            return image.mean((2, 3, 4), keepdim=True).expand_as(image)

    image = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2)

    found = NetworkFeatures(Mean(), divisor=2, crop=False)(image)

    torch.testing.assert_close(found, torch.full_like(image, (0 + 1 + 2 + 2) / 4))


def test_cells_get_the_mean_of_their_voxels_and_a_network_of_monai_learns():
    features = NetworkFeatures(UNet(3, 1, 5, channels=(4, 8, 8), strides=(2, 2)), divisor=4)

    (cells,) = features.pooled(torch.rand(1, 1, 13, 10, 11), [(2, 2, 2)])
    cells.square().sum().backward()

    assert cells.shape == (1, 5, 7, 5, 6)
    assert all(weight.grad.abs().max() > 0 for weight in features.parameters() if weight.dim() > 1)


class Centred(torch.nn.Module):
    """Features that depend on all that is seen, as those behind an instance norm."""

    def forward(self, image):
        return image - image.mean((2, 3, 4), keepdim=True)


def test_padding_does_not_change_the_features_of_an_image():
    images = 1 + torch.rand(2, 1, 5, 6, 7)
    padded = F.pad(images, (2, 0, 1, 3, 0, 4))

    features = NetworkFeatures(Centred(), divisor=1)(padded)

    torch.testing.assert_close(features[:, :, :5, 1:7, 2:], Centred()(images))
    torch.testing.assert_close(features, F.pad(Centred()(images), (2, 0, 1, 3, 0, 4), mode="replicate"))
    whole = NetworkFeatures(Centred(), divisor=1, crop=False)(padded)
    torch.testing.assert_close(whole, Centred()(padded))


def test_each_image_has_a_box_of_its_own_and_an_empty_one_is_seen_whole():
    image = torch.zeros(2, 1, 4, 4, 4)
    image[1, :, 1:3, :2, 3] = torch.rand(2, 2) + 1

    features = NetworkFeatures(Centred(), divisor=1)(image)

    assert features[0].abs().max() == 0
    torch.testing.assert_close(features[1, 0, 1:3, :2, 3], Centred()(image[1:, :, 1:3, :2, 3:])[0, 0, ..., 0])


def test_features_of_classes_are_roots_of_their_probabilities():
    logits = torch.randn(1, 4, 3, 3, 3, dtype=torch.float64)

    features = NetworkFeatures(torch.nn.Identity(), divisor=1, crop=False, probabilities=True, scale=3.0)(logits)

    torch.testing.assert_close(features, 3 * logits.softmax(1).sqrt())
    torch.testing.assert_close(features.square().sum(1), torch.full((1, 3, 3, 3), 9.0, dtype=torch.float64))


def test_certain_classes_have_finite_gradients():
    logits = torch.tensor([200.0, 0.0, -200.0]).view(1, 3, 1, 1, 1).requires_grad_()

    NetworkFeatures(torch.nn.Identity(), divisor=1, probabilities=True, crop=False)(logits).sum().backward()

    assert logits.grad.isfinite().all()
