# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock, as_feature_block
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid

SPACINGS = [(2, 3, 4), (1, 1, 1)]


class Powers(FeatureBlock):
    """Two features of a voxel."""

    def forward(self, image):
        return torch.cat([image, image.square()], 1)


@pytest.mark.parametrize("compat", [False, True])
def test_forward_alone_makes_features_on_every_grid(compat):
    fixed, moving = torch.randn(2, 2, 1, 7, 8, 10)

    of_fixed, of_moving = Powers().pooled_pair(fixed, moving, SPACINGS, compat)

    for found, image in ((of_fixed, fixed), (of_moving, moving), (Powers().pooled(fixed, SPACINGS, compat), fixed)):
        torch.testing.assert_close(found, [pool_to_grid(Powers()(image), spacing, compat) for spacing in SPACINGS])


def test_features_of_all_voxels_are_computed_once_for_all_grids():
    calls = []

    class Counting(Powers):
        def forward(self, image):
            calls.append(image)
            return super().forward(image)

    Counting().pooled(torch.randn(1, 1, 7, 8, 10), [(2, 3, 4), (1, 1, 1), (3, 3, 3)])

    assert len(calls) == 1


def test_any_module_becomes_a_feature_block_and_a_feature_block_stays_itself():
    block, image = Powers(), torch.randn(1, 1, 7, 8, 10)
    module = torch.nn.Conv3d(1, 4, 3, padding=1)

    assert as_feature_block(block) is block
    pooled = as_feature_block(module).pooled(image, SPACINGS)
    torch.testing.assert_close(pooled, [pool_to_grid(module(image), spacing) for spacing in SPACINGS])


def test_weights_learn_through_the_pooled_features():
    module = torch.nn.Conv3d(1, 4, 3, padding=1)

    sum(
        grid.square().sum() for grid in as_feature_block(module).pooled(torch.randn(1, 1, 7, 8, 10), SPACINGS)
    ).backward()

    assert module.weight.grad.abs().max() > 0


def test_a_subclass_without_forward_is_told_so():
    with pytest.raises(NotImplementedError, match="FeatureBlock has no forward"):
        FeatureBlock().pooled(torch.zeros(1, 1, 4, 5, 6), SPACINGS)
