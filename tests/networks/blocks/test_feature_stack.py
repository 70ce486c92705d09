# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.feature_stack import FeatureStack
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures

SIZE = (6, 7, 8)


def scan_and_label(labels):
    return torch.cat([torch.randn(2, 1, *SIZE), torch.randint(0, labels, (2, 1, *SIZE)).float()], 1)


def test_every_part_sees_its_own_channel():
    image = scan_and_label(3)

    features = FeatureStack([MindSSC(), SemanticFeatures()])(image)

    expected = torch.cat([MindSSC()(image[:, :1]), SemanticFeatures()(image[:, 1:])], 1)
    assert features.shape == (2, 12 + 3, *SIZE)
    assert torch.equal(features, expected)


def test_parts_that_must_see_both_images_do_on_every_grid():
    fixed, moving, spacings = scan_and_label(2), scan_and_label(4), [(2, 3, 4), (1, 2, 2)]

    pooled = FeatureStack([MindSSC(), SemanticFeatures()]).pooled_pair(fixed, moving, spacings)

    semantic = SemanticFeatures().pooled_pair(fixed[:, 1:], moving[:, 1:], spacings)
    for image, found, labels in zip((fixed, moving), pooled, semantic, strict=True):
        mind = MindSSC().pooled(image[:, :1], spacings)
        assert all(torch.equal(grid, torch.cat(parts, 1)) for grid, *parts in zip(found, mind, labels, strict=True))


def test_weights_of_the_parts_belong_to_the_stack():
    part = torch.nn.Conv3d(1, 4, 1)

    assert {id(weight) for weight in FeatureStack([MindSSC(), part]).parameters()} == {id(p) for p in part.parameters()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "call",
    [
        lambda stack, image: stack(image),
        lambda stack, image: stack.pooled(image, [(2, 2, 2)]),
        lambda stack, image: stack.pooled_pair(image, image, [(2, 2, 2)]),
    ],
)
def test_one_channel_per_part_is_needed(channels, call):
    stack, image = FeatureStack([MindSSC(), SemanticFeatures()]), torch.zeros(1, channels, *SIZE)

    with pytest.raises(ValueError, match=rf"each of its 2 parts, got shape \(1, {channels}, "):
        call(stack, image)
