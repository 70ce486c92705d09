# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.obelisk_features import ObeliskFeatures
from monai_reg_ext.networks.layers.warp import identity_grid, sample

SIZE = (26, 30, 23)


def with_golden_weights(golden: dict[str, torch.Tensor]) -> ObeliskFeatures:
    layers = {"edges.conv": "layer0", "mixing.0.conv": "layer1", "mixing.1.conv": "layer2", "head": "layer3"}
    layers |= {"edges.adn.N": "batch0", "mixing.0.adn.N": "batch1", "mixing.1.adn.N": "batch2"}
    features = ObeliskFeatures(16, compat=True)
    names = features.state_dict()
    weights = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        weights[name] = golden["obelisk." + (f"{layers[layer]}.{kind}" if layer else name)]
    features.load_state_dict(weights)
    return features.eval()


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_golden_features(golden_pdd, side):
    features = with_golden_weights(golden_pdd)

    with torch.no_grad():
        (found,) = features.pooled(golden_pdd[side][None, None], [(3, 3, 3)])

    torch.testing.assert_close(found[0], golden_pdd[f"features_{side}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("channels", "weights"), [(16, 120_780), (24, 270_772)])
def test_it_has_as_many_weights_as_the_paper(channels, weights):
    assert sum(weight.numel() for weight in ObeliskFeatures(channels).parameters()) == weights


@pytest.mark.parametrize(("pool", "stride"), [(1, 1), (1, 2), (2, 2)])
def test_edges_are_compared_at_offsets_in_voxels_from_the_centres_of_cells(pool, stride):
    features = ObeliskFeatures(2, pool=pool, stride=stride).eval()
    edges = torch.rand(2, 4, *(-(-extent // (stride * pool)) for extent in SIZE))

    found = features._differences(edges, SIZE, (3, 4, 5), (9, 8, 5))

    # edge e lies at voxel stride * pool * e, the centre of cell i at voxel i * spacing + (spacing - 1) / 2
    spacing, half = torch.tensor([3.0, 4, 5]).view(3, 1, 1, 1), torch.tensor([1.0, 1.5, 2]).view(3, 1, 1, 1)
    voxels = identity_grid([9, 8, 5], edges) * spacing + half
    for pair in range(4):
        sides = [(voxels + features.offsets[side, pair].view(3, 1, 1, 1)) / (stride * pool) for side in (0, 1)]
        first, second = (sample(edges, side.expand(2, -1, -1, -1, -1), padding="zeros") for side in sides)
        torch.testing.assert_close(found[:, pair::4], first - second, atol=1e-5, rtol=1e-5)


def test_a_moved_image_has_moved_features(texture):
    # the pattern of edges repeats after 4 voxels, that of cells after 2
    features = ObeliskFeatures(4, deviation=2.0).eval()
    image = texture((64, 60, 68))

    with torch.no_grad():
        (found,) = features.pooled(image, [(2, 2, 2)])
        (moved,) = features.pooled(image.roll((4, -8, 4), (2, 3, 4)), [(2, 2, 2)])

    inner = (..., slice(12, -12), slice(12, -12), slice(12, -12))
    torch.testing.assert_close(moved.roll((-2, 4, -2), (2, 3, 4))[inner], found[inner], atol=1e-5, rtol=1e-4)


def test_several_grids_and_every_voxel_are_possible():
    features = ObeliskFeatures(3, in_channels=2).eval()
    image = torch.rand(2, 2, *SIZE)

    with torch.no_grad():
        one, other = features.pooled(image, [(3, 4, 5), (2, 2, 2)])
        full = features(image)

    assert (one.shape, other.shape) == ((2, 3, 9, 8, 5), (2, 3, 13, 15, 12))
    assert full.shape == (2, 3, *SIZE)


def test_all_its_weights_learn():
    features = ObeliskFeatures(3)

    features.pooled(torch.rand(2, 1, *SIZE), [(3, 3, 3)])[0].square().sum().backward()

    assert all(weight.grad.abs().max() > 0 for weight in features.parameters())


def test_the_average_at_the_border_is_that_of_existing_voxels():
    ones = torch.ones(1, 1, *SIZE)

    torch.testing.assert_close(ObeliskFeatures(2)._smoothed(ones), torch.ones(1, 1, 13, 15, 12))
    # the reference counts zeros beyond: 2 of 3 voxels along each axis
    corner = ObeliskFeatures(2, compat=True)._smoothed(ones)[0, 0, 0, 0, 0]
    torch.testing.assert_close(corner, torch.tensor(8 / 27))
