# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid

VOXELS = [(1, 1, 1)]


def label_maps(batch=1):
    """Fixed and moving map with labels 0, 3, 7 (not contiguous); 3 is missing from the moving one, 7 is rare."""
    fixed = torch.zeros(batch, 1, 5, 6, 7, dtype=torch.int32)
    moving = fixed.clone()
    fixed[:, :, 1:3] = 3
    fixed[:, :, 4, 0, :2] = 7
    moving[:, :, 0, 0, :5] = 7
    return fixed, moving


def of_pair(features, fixed, moving):
    """Features of every voxel of both maps."""
    (of_fixed,), (of_moving,) = features.pooled_pair(fixed, moving, VOXELS)
    return of_fixed, of_moving


def slow_weights(maps, labels, exponent=0.3, scale=10.0):
    """The formula for one pair (or one map) in numpy; 0 for labels that are absent."""
    counts = np.array([sum(np.count_nonzero(m.numpy() == label) for m in maps) for label in labels])
    weights = np.zeros(len(labels))
    weights[counts > 0] = counts[counts > 0] ** -exponent
    return scale * weights / weights[counts > 0].mean()


def weighted_one_hot(label_map, labels, weights):
    return torch.stack([(label_map[0] == label) * weight for label, weight in zip(labels, weights, strict=True)])


@pytest.mark.parametrize(("scale", "exponent"), [(10.0, 0.3), (4.0, 0.5), (1.0, 0.0)])
def test_a_pair_is_weighted_by_the_common_frequencies_of_its_labels(scale, exponent):
    fixed, moving = label_maps()
    labels = [0, 3, 7]

    features = of_pair(SemanticFeatures(scale, exponent), fixed, moving)

    weights = slow_weights([fixed, moving], labels, exponent, scale)
    for label_map, found in zip((fixed, moving), features, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0], weighted_one_hot(label_map[0], labels, weights).float())


def test_the_mean_weight_is_the_scale_and_the_rarest_label_weighs_most():
    fixed, moving = label_maps()

    features = torch.cat(of_pair(SemanticFeatures(scale=10), fixed, moving))

    weights = features.amax((0, 2, 3, 4))
    assert weights.mean() == pytest.approx(10, rel=1e-5)
    assert weights[2] > weights[1] > weights[0]


def test_a_single_image_is_weighted_by_its_own_labels():
    _, moving = label_maps()

    features = SemanticFeatures()(moving)

    weights = slow_weights([moving], [0, 7])
    torch.testing.assert_close(features[0], weighted_one_hot(moving[0], [0, 7], weights).float())
    assert not torch.allclose(features[:, 1], of_pair(SemanticFeatures(), *label_maps())[1][:, 2])


def test_items_of_a_batch_have_their_own_weights_and_zeros_for_labels_they_lack():
    fixed, moving = label_maps(batch=2)
    fixed[1], moving[1] = 0, 0
    fixed[1, 0, 2], moving[1, 0, :2] = 5, 5

    features = of_pair(SemanticFeatures(), fixed, moving)

    labels = [0, 3, 5, 7]
    for item in range(2):
        weights = slow_weights([fixed[item], moving[item]], labels)
        for label_map, found in zip((fixed, moving), features, strict=True):
            torch.testing.assert_close(found[item], weighted_one_hot(label_map[item], labels, weights).float())


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.usefixtures("thin_slabs")
def test_cells_of_a_grid_hold_the_mean_over_their_voxels(compat):
    fixed, moving = label_maps(batch=2)
    spacings, features = [(2, 3, 4), (3, 2, 2)], SemanticFeatures()

    pooled_pair, alone = (
        features.pooled_pair(fixed, moving, spacings, compat),
        features.pooled(moving, spacings, compat),
    )

    every_voxel = [*of_pair(features, fixed, moving), features(moving)]
    for pooled, whole in zip([*pooled_pair, alone], every_voxel, strict=True):
        torch.testing.assert_close(pooled, [pool_to_grid(whole, spacing, compat) for spacing in spacings])


@pytest.mark.usefixtures("thin_slabs")
def test_pooled_features_need_a_fraction_of_the_memory_of_all(largest_tensor):
    label_map = torch.arange(9).repeat_interleave(4).view(1, 1, -1, 1, 1).expand(1, 1, 36, 11, 13)

    with largest_tensor() as largest:
        SemanticFeatures().pooled_pair(label_map, label_map, [(4, 4, 4), (2, 2, 2)])

    # the map itself, slabs of four rows, and the finer grid
    assert largest.values <= max(36 * 11 * 13, 9 * 4 * 11 * 13, 9 * 18 * 6 * 7)


@pytest.mark.parametrize("labels", [None, (614454277, 0, -5, 614454276)])
def test_labels_far_apart_and_below_zero_are_told_apart(labels):
    # ids of brain atlases have nine digits
    label_map = torch.tensor([-5, 614454277, 0, 614454276]).view(1, 1, 4, 1, 1)

    features = SemanticFeatures(labels=labels)(label_map)

    expected = 10 * torch.eye(4)[[0, 3, 1, 2]]  # row: voxel, column: label in ascending order
    torch.testing.assert_close(features[0, :, :, 0, 0].T, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_may_be_of_any_type_and_stay_as_they_were(dtype):
    fixed, moving = (label_map.to(dtype) for label_map in label_maps())
    before = fixed.clone()

    features = of_pair(SemanticFeatures(), fixed, moving)

    for found, expected in zip(features, of_pair(SemanticFeatures(), *label_maps()), strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.equal(fixed, before)


def test_both_maps_may_be_of_different_types():
    fixed, moving = label_maps()

    features = of_pair(SemanticFeatures(), fixed.to(torch.uint8), moving.float())

    torch.testing.assert_close(features, of_pair(SemanticFeatures(), fixed, moving))


def test_a_map_of_one_label_is_a_constant_of_the_scale():
    features = SemanticFeatures(scale=10)(torch.zeros(1, 1, 3, 4, 5))

    torch.testing.assert_close(features, torch.full((1, 1, 3, 4, 5), 10.0))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4, 4), (1, 4, 4, 4)])
def test_anything_but_one_channel_is_refused(shape):
    with pytest.raises(ValueError, match=r"label maps of shape \(B, 1, I, J, K\), got \(1, "):
        SemanticFeatures()(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"label maps of shape \(B, 1, I, J, K\), got \(1, "):
        of_pair(SemanticFeatures(), torch.zeros(1, 1, 4, 4, 4), torch.zeros(shape))


def test_given_labels_have_their_channels_whether_present_or_not():
    fixed, moving = label_maps()
    features = SemanticFeatures(scale=2.0, exponent=0.0, labels=(7, 0, 1, 3))

    of_fixed, of_moving = of_pair(features, fixed, moving)

    for label_map, found in ((fixed, of_fixed), (moving, of_moving)):
        # mean 1 over the labels present in the pair, which 1 is not
        torch.testing.assert_close(found[0], weighted_one_hot(label_map[0], (0, 1, 3, 7), (2.0, 2.0, 2.0, 2.0)).float())
        assert found[:, 1].sum() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_given_labels_may_be_larger_than_the_type_of_a_map_can_hold(dtype):
    fixed, _ = label_maps()

    features = SemanticFeatures(labels=(0, 3, 7, 300, 614454277))(fixed.to(dtype))

    torch.testing.assert_close(features[:, :3], SemanticFeatures()(fixed))
    assert (features[:, 3:] == 0).all()


def test_a_label_without_a_channel_is_refused():
    fixed, _ = label_maps()

    with pytest.raises(ValueError, match=r"holds 2 classes, e\.g\. \[3, 7\], that are none of the \[0, 1\]"):
        SemanticFeatures(labels=(0, 1))(fixed)
