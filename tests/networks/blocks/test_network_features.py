# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
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

    found = NetworkFeatures(Mean(), divisor=2)(image)

    torch.testing.assert_close(found, torch.full_like(image, (0 + 1 + 2 + 2) / 4))


def test_cells_get_the_mean_of_their_voxels_and_a_network_of_monai_learns():
    features = NetworkFeatures(UNet(3, 1, 5, channels=(4, 8, 8), strides=(2, 2)), divisor=4)

    (cells,) = features.pooled(torch.rand(1, 1, 13, 10, 11), [(2, 2, 2)])
    cells.square().sum().backward()

    assert cells.shape == (1, 5, 7, 5, 6)
    assert all(weight.grad.abs().max() > 0 for weight in features.parameters() if weight.dim() > 1)
