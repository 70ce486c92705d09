# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.signed_distance_features import SignedDistanceFeatures
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.signed_distance import signed_distance

SIZE = (8, 10, 7)


def label_map(*boxes):
    """Boxes of labels, given as (label, start) of 3 x 4 x 2 voxels."""
    label = torch.zeros(1, 1, *SIZE)
    for value, (i, j, k) in boxes:
        label[..., i : i + 3, j : j + 4, k : k + 2] = value
    return label


FIXED = label_map((2, (0, 1, 2)), (7, (4, 5, 1)))
MOVING = label_map((2, (1, 0, 3)), (5, (4, 4, 4)))


def test_merged_features_know_only_labelled_or_not():
    features = SignedDistanceFeatures(power=1.0, scale=2.0)(FIXED)

    torch.testing.assert_close(features, signed_distance(FIXED > 0, 1.0, 2.0))
    torch.testing.assert_close(SignedDistanceFeatures(labels=[7])(FIXED), signed_distance(FIXED == 7))


def test_every_organ_has_a_channel_and_its_own_distances():
    features = SignedDistanceFeatures(merged=False, voxel_size=(1, 2, 3))(FIXED)

    expected = torch.cat([FIXED == 2, FIXED == 7], 1)
    torch.testing.assert_close(features, signed_distance(expected, voxel_size=(1, 2, 3)))


def test_a_pair_is_compared_where_both_have_the_organ():
    both = SignedDistanceFeatures(merged=False)
    named = SignedDistanceFeatures(merged=False, labels=[2, 5, 7])

    for block, present in ((both, [True]), (named, [True, False, False])):
        fixed, moving = block.pooled_pair(FIXED, MOVING, [(1, 1, 1), (2, 3, 2)])
        for pooled, label in ((fixed, FIXED), (moving, MOVING)):
            assert [channel.abs().max().item() > 0 for channel in pooled[0][0]] == present
            torch.testing.assert_close(pooled[0][:, :1], signed_distance(label == 2))
            torch.testing.assert_close(pooled[1], pool_to_grid(pooled[0], (2, 3, 2)))


@pytest.mark.parametrize("merged", [True, False])
def test_an_empty_label_map_says_nothing_of_either_image(merged):
    empty = torch.zeros_like(FIXED)

    fixed, moving = SignedDistanceFeatures(merged)(empty), SignedDistanceFeatures(merged)(empty)
    assert fixed.abs().max() == moving.abs().max() == 0
    (fixed,), (moving,) = SignedDistanceFeatures(merged).pooled_pair(FIXED, empty, [(1, 1, 1)])
    assert fixed.abs().max() == moving.abs().max() == 0


def test_whole_numbers_of_any_kind_are_labels():
    torch.testing.assert_close(
        SignedDistanceFeatures(merged=False)(FIXED.to(torch.uint8)), SignedDistanceFeatures(merged=False)(FIXED)
    )


def test_label_maps_are_moved_by_nearest_neighbour():
    ddf = torch.full((1, 3, *SIZE), 0.4)

    assert torch.equal(SignedDistanceFeatures().warped(FIXED, ddf), FIXED)


def test_one_channel_of_labels_is_needed():
    with pytest.raises(ValueError, match="needs label maps of shape"):
        SignedDistanceFeatures()(torch.zeros(1, 2, *SIZE))
