# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.mask_channel import add_mask_channel

SIZE = (3, 2, 4)


@pytest.fixture
def features():
    return torch.randn(2, 2, 5, *SIZE, dtype=torch.float64)


@pytest.fixture
def masks():
    return torch.rand(2, 2, 1, *SIZE) > 0.5


def difference(fixed, moving):
    return (fixed - moving).square().sum(1, keepdim=True)


def test_where_one_side_only_is_inside_the_penalty_is_added(features, masks):
    more = difference(*add_mask_channel(*features, *masks, 2.5)) - difference(*features)

    torch.testing.assert_close(more, 2.5 * (masks[0] != masks[1]).double())


def test_the_penalty_grows_with_the_square_of_the_difference_of_the_shares(features):
    shares = torch.rand(2, 2, 1, *SIZE, dtype=torch.float64)

    more = difference(*add_mask_channel(*features, *shares, 2.5)) - difference(*features)

    torch.testing.assert_close(more, 2.5 * (shares[0] - shares[1]).square())


@pytest.mark.parametrize("given", [0, 1])
def test_a_mask_that_is_missing_has_no_outside(features, masks, given):
    pair = [None, None]
    pair[given] = masks[given].float()

    more = difference(*add_mask_channel(*features, *pair, 2.5)) - difference(*features)

    torch.testing.assert_close(more, 2.5 * (~masks[given]).double())


def test_a_cell_inside_differs_from_the_zeros_beyond_the_grid_as_before(features, masks):
    fixed, _ = add_mask_channel(*features, *masks, 2.5)

    more = fixed.square().sum(1, keepdim=True) - features[0].square().sum(1, keepdim=True)

    assert more[masks[0]].abs().max() < 1e-12


@pytest.mark.parametrize("penalty", [0, 4.0])
def test_without_masks_or_penalty_the_features_are_as_they_came(features, masks, penalty):
    given = [None, None] if penalty else masks

    fixed, moving = features

    assert all(
        out is side for out, side in zip(add_mask_channel(fixed, moving, *given, penalty), (fixed, moving), strict=True)
    )


@pytest.mark.parametrize("penalty", [-0.1, float("nan")])
def test_a_penalty_that_would_make_leaving_pay_is_refused(features, masks, penalty):
    with pytest.raises(ValueError, match="mask_penalty must be >= 0"):
        add_mask_channel(*features, *masks, penalty)
