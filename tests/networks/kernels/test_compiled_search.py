# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.coupled_convex import coupled_convex
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume


@pytest.fixture
def features():
    return torch.rand(2, 2, 5, 9, 6, 11, generator=torch.Generator().manual_seed(0))


def costs(volume):
    return torch.cat([cost for _, cost in volume], 1)


@pytest.mark.parametrize("half_width", [(1, 2, 3), (3, 0, 1), (8, 5, 10), (9, 7, 12)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("widths", [(3, 3), (), (5,)])
def test_the_compiled_costs_are_the_plain_ones(features, half_width, symmetric, compat, widths, compiled, plain):
    def all_costs():
        return costs(SSDCostVolume(*features, half_width, widths, compat, symmetric))

    torch.testing.assert_close(compiled(all_costs), plain(all_costs), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_compiled_costs_in_planes_larger_than_the_cache_are_the_plain_ones(symmetric, compiled, plain):
    # 1147 points of a plane are three blocks; 11 labels along axis 0 are more than are taken at once
    features = torch.rand(2, 1, 3, 4, 31, 37)

    def all_costs():
        return costs(SSDCostVolume(*features, (5, 3, 2), symmetric=symmetric))

    torch.testing.assert_close(compiled(all_costs), plain(all_costs), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("items", [1, 2])
def test_the_compiled_costs_and_field_with_masks_are_the_plain_ones(
    features, symmetric, compat, items, compiled, plain
):
    fixed_mask, moving_mask = (torch.rand(2, items, 1, 9, 6, 11) > 0.6).float()

    def costs_and_field():
        volume = SSDCostVolume(
            *features[:, :items],
            (2, 3, 1),
            compat=compat,
            symmetric=symmetric,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
        )
        return costs(volume), coupled_convex(volume, compat=compat, mask=volume.mask)

    for fast, slow in zip(compiled(costs_and_field), plain(costs_and_field), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("memory", [0, None])
@pytest.mark.parametrize("compat", [False, True])
def test_the_compiled_search_finds_the_plain_field(features, memory, compat, compiled, plain):
    def field():
        return coupled_convex(SSDCostVolume(*features, (2, 3, 1), compat=compat, memory=memory), compat=compat)

    torch.testing.assert_close(compiled(field), plain(field), rtol=0, atol=1e-6)


def test_equal_costs_go_to_the_first_displacement(compiled):
    zeros = torch.zeros(1, 2, 5, 6, 7)

    field = compiled(lambda: coupled_convex(SSDCostVolume(zeros, zeros, (1, 2, 1)), couplings=(), compat=True))

    # the first label is the lowest along all axes; inside, a mean of equal ones is the same
    torch.testing.assert_close(field[0, :, 2, 2, 2], torch.tensor([-1.0, -2, -1]))
