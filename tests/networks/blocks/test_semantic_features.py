# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures


def label_maps(batch=1):
    """Fixed and moving map with labels 0, 3, 7 (not contiguous); 3 is missing from the moving one, 7 is rare."""
    fixed = torch.zeros(batch, 1, 5, 6, 7, dtype=torch.int32)
    moving = fixed.clone()
    fixed[:, :, 1:3] = 3
    fixed[:, :, 4, 0, :2] = 7
    moving[:, :, 0, 0, :5] = 7
    return fixed, moving


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

    features = SemanticFeatures(scale, exponent).pair(fixed, moving)

    weights = slow_weights([fixed, moving], labels, exponent, scale)
    for label_map, found in zip((fixed, moving), features, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0], weighted_one_hot(label_map[0], labels, weights).float())


def test_the_mean_weight_is_the_scale_and_the_rarest_label_weighs_most():
    fixed, moving = label_maps()

    features = torch.cat(SemanticFeatures(scale=10).pair(fixed, moving))

    weights = features.amax((0, 2, 3, 4))
    assert weights.mean() == pytest.approx(10, rel=1e-5)
    assert weights[2] > weights[1] > weights[0]


def test_a_single_image_is_weighted_by_its_own_labels():
    _, moving = label_maps()

    features = SemanticFeatures()(moving)

    weights = slow_weights([moving], [0, 7])
    torch.testing.assert_close(features[0], weighted_one_hot(moving[0], [0, 7], weights).float())
    assert not torch.allclose(features[:, 1], SemanticFeatures().pair(*label_maps())[1][:, 2])


def test_items_of_a_batch_have_their_own_weights_and_zeros_for_labels_they_lack():
    fixed, moving = label_maps(batch=2)
    fixed[1], moving[1] = 0, 0
    fixed[1, 0, 2], moving[1, 0, :2] = 5, 5

    features = SemanticFeatures().pair(fixed, moving)

    labels = [0, 3, 5, 7]
    for item in range(2):
        weights = slow_weights([fixed[item], moving[item]], labels)
        for label_map, found in zip((fixed, moving), features, strict=True):
            torch.testing.assert_close(found[item], weighted_one_hot(label_map[item], labels, weights).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_may_be_of_any_type_and_stay_as_they_were(dtype):
    fixed, moving = (label_map.to(dtype) for label_map in label_maps())
    before = fixed.clone()

    features = SemanticFeatures().pair(fixed, moving)

    for found, expected in zip(features, SemanticFeatures().pair(*label_maps()), strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.equal(fixed, before)


def test_a_map_of_one_label_is_a_constant_of_the_scale():
    features = SemanticFeatures(scale=10)(torch.zeros(1, 1, 3, 4, 5))

    torch.testing.assert_close(features, torch.full((1, 1, 3, 4, 5), 10.0))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4, 4), (1, 4, 4, 4)])
def test_anything_but_one_channel_is_refused(shape):
    with pytest.raises(ValueError, match=r"label maps of shape \(B, 1, I, J, K\), got \(1, "):
        SemanticFeatures()(torch.zeros(shape))
