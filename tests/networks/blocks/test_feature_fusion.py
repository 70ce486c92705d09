# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_reg_ext.networks.blocks.feature_concat import FeatureConcat
from monai_reg_ext.networks.blocks.feature_fusion import FeatureFusion
from monai_reg_ext.networks.blocks.feature_stack import FeatureStack
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid


def fusion(seed=0, **options):
    torch.manual_seed(seed)
    return FeatureFusion(FeatureConcat([MindSSC(), nn.Identity()]), 13, **options)


def scans(seed=1):
    return torch.rand(1, 1, 9, 8, 7, generator=torch.Generator().manual_seed(seed))


def test_the_published_fusion_of_26_channels_has_three_maps_of_864_1056_and_495_weights():
    network = FeatureFusion(nn.Identity(), 26)

    counts = [weights.numel() for weights in network.parameters()]
    assert counts == [26 * 32, 32, 32 * 32, 32, 32 * 15, 15]
    assert [sum(counts[i : i + 2]) for i in (0, 2, 4)] == [864, 1056, 495]


def test_pooled_features_are_fused_by_norm_and_relu_after_each_pointwise_map_but_the_last():
    network, image = fusion(hidden=(5, 4), out_channels=3), scans()
    weights = [parameter.detach() for parameter in network.fusion.parameters()]

    (found,) = network.pooled(image, [(2, 3, 2)])

    expected = pool_to_grid(network.features(image), (2, 3, 2))
    for layer in range(3):
        matrix, bias = weights[2 * layer].flatten(1), weights[2 * layer + 1]
        expected = torch.einsum("oc,bcijk->boijk", matrix, expected) + bias[:, None, None, None]
        if layer < 2:
            expected = F.relu(
                (expected - expected.mean((2, 3, 4), keepdim=True))
                / (expected.var((2, 3, 4), correction=0, keepdim=True) + 1e-5).sqrt()
            )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_every_voxel_is_a_cell_where_no_grid_is_asked_for():
    network, image = fusion(), scans()

    torch.testing.assert_close(network(image), network.pooled(image, [(1, 1, 1)])[0])
    assert network(image).shape == (1, 15, 9, 8, 7)


@pytest.mark.parametrize("compat", [False, True])
def test_partial_cells_are_kept_or_dropped_as_the_features_do(compat):
    network, fixed, moving = fusion(), scans(1), scans(2)
    grids = [(2, 3, 4)]  # none of which divides 9 x 8 x 7

    pair = network.pooled_pair(fixed, moving, grids, compat)

    size = (4, 2, 1) if compat else (5, 3, 2)
    for image, (found,) in zip((fixed, moving), pair, strict=True):
        assert found.shape == (1, 15, *size)
        torch.testing.assert_close([found], network.pooled(image, grids, compat))


def test_features_that_depend_on_both_images_see_both():
    stack = FeatureStack([MindSSC(), SemanticFeatures(labels=(0, 1, 2))])
    network, grids = FeatureFusion(stack, 15), [(2, 2, 2), (3, 2, 1)]
    fixed, moving = (torch.cat([scans(seed), torch.randint(0, seed, (1, 1, 9, 8, 7)).float()], 1) for seed in (2, 3))

    found = network.pooled_pair(fixed, moving, grids)

    for of_image, expected in zip(found, stack.pooled_pair(fixed, moving, grids), strict=True):
        torch.testing.assert_close(of_image, [network.fusion(grid) for grid in expected])
    # weighted by its own frequencies, an image of fewer labels has other features
    assert not torch.allclose(found[0][0], network.pooled(fixed, grids)[0], atol=1e-3)


def test_both_images_of_a_pair_go_through_the_same_weights_on_every_grid():
    network, fixed, moving = fusion(), scans(1), scans(2)
    grids = [(2, 2, 2), (3, 2, 1)]

    of_fixed, of_moving = network.pooled_pair(fixed, moving, grids)

    torch.testing.assert_close(of_fixed, network.pooled(fixed, grids))
    torch.testing.assert_close(of_moving, network.pooled(moving, grids))


def test_cells_are_fused_one_by_one_so_that_their_order_does_not_matter():
    network = FeatureFusion(nn.Identity(), 6)
    features = torch.rand(2, 6, 4, 5, 3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))

    shuffled = network(features.flatten(2)[..., order].view_as(features))

    torch.testing.assert_close(shuffled.flatten(2), network(features).flatten(2)[..., order], atol=1e-5, rtol=1e-5)


def test_every_layer_learns():
    network, image = fusion(), scans()

    network.pooled(image, [(2, 2, 2)])[0].square().mean().backward()

    matrices = [parameter.grad for parameter in network.fusion.parameters() if parameter.dim() > 1]
    assert len(matrices) == 3
    assert all(gradient.abs().max() > 0 for gradient in matrices)


def test_what_is_below_learns_too():
    features = nn.Conv3d(1, 4, 1)

    FeatureFusion(features, 4)(scans()).square().mean().backward()

    assert features.weight.grad.abs().max() > 0


def test_features_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="made for 26 channels, its features have 12"):
        FeatureFusion(MindSSC(), 26).pooled(scans(), [(2, 2, 2)])
