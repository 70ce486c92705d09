# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.feature_concat import FeatureConcat
from monai_reg_ext.networks.blocks.local_normalization import LocalNormalization
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid

SPACINGS = [(2, 3, 4), (1, 2, 2)]


def test_features_of_one_image_stand_side_by_side(texture):
    image, parts = texture((9, 10, 11)), [MindSSC(), LocalNormalization()]

    torch.testing.assert_close(FeatureConcat(parts)(image), torch.cat([parts[0](image), parts[1](image)], 1))


@pytest.mark.parametrize("compat", [False, True])
def test_they_do_on_every_grid(texture, compat):
    image = texture((9, 10, 11))
    concat = FeatureConcat([MindSSC(), torch.nn.Conv3d(1, 4, 3, padding=1), LocalNormalization()])

    pooled = concat.pooled(image, SPACINGS, compat)

    whole = concat(image)
    assert whole.shape[1] == 12 + 4 + 1
    expected = [pool_to_grid(whole, spacing, compat) for spacing in SPACINGS]
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_parts_that_must_see_both_images_do(compat):
    fixed, moving = torch.randint(0, 2, (2, 1, 6, 7, 8)), torch.randint(0, 4, (2, 1, 6, 7, 8))

    pooled = FeatureConcat([MindSSC(), SemanticFeatures()]).pooled_pair(fixed, moving, SPACINGS, compat)

    semantic = SemanticFeatures().pooled_pair(fixed, moving, SPACINGS, compat)
    for image, found, labels in zip((fixed, moving), pooled, semantic, strict=True):
        for grid, *parts in zip(found, MindSSC().pooled(image, SPACINGS, compat), labels, strict=True):
            assert torch.equal(grid, torch.cat(parts, 1))


def test_concats_may_be_nested():
    image = torch.randn(1, 1, 6, 7, 8)

    pooled = FeatureConcat([FeatureConcat([MindSSC()]), MindSSC(2)]).pooled(image, SPACINGS)

    torch.testing.assert_close(pooled, FeatureConcat([MindSSC(), MindSSC(2)]).pooled(image, SPACINGS))
