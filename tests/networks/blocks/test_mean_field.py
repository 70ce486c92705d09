# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.mean_field import PAPER_ALPHAS, MeanField
from monai_reg_ext.networks.layers.mean_field import mean_field

COST = 4 * torch.rand(1, 3, 5, 4, 4, 2, 3, generator=torch.Generator().manual_seed(0))
# the scale of the costs, that of later costs and the last are multiplied; of the messages' the ratio counts
ALPHAS = (1.2, 0.1, 0.9, -0.6, 0.3, 1.5)


def probabilities(block: MeanField) -> torch.Tensor:
    return block(COST).flatten(1, 3).softmax(1)


@pytest.mark.parametrize("rounds", [1, 2])
def test_two_weights_do_all_that_six_can(rounds):
    six = MeanField(alphas=ALPHAS, rounds=rounds)
    # a single round never weighs the costs anew
    two = MeanField(1.2 * 1.5 * (0.9 if rounds == 2 else 1.0), -0.6 / 0.9, rounds=rounds)

    torch.testing.assert_close(probabilities(six), probabilities(two))


def test_logits_are_the_negated_costs_times_the_sharpness():
    logits = MeanField(3.0, 0.5, rounds=3, averages=1)(COST)

    torch.testing.assert_close(logits, -3.0 * mean_field(COST, 3, message_weight=0.5, averages=1))


@pytest.mark.parametrize("alphas", [None, ALPHAS])
def test_with_and_without_gradients_it_is_the_same(alphas):
    block, before = MeanField(alphas=alphas), COST.clone()

    with torch.no_grad():
        plain = block(COST)

    torch.testing.assert_close(plain, block(COST))
    assert torch.equal(COST, before)


def test_the_biases_of_the_paper_cannot_learn_and_the_others_do():
    block = MeanField(alphas=PAPER_ALPHAS)
    weights = torch.randn(60, 24, generator=torch.Generator().manual_seed(1))

    (probabilities(block).flatten(2)[0] * weights).sum().backward()

    size = block.alphas.grad.abs()
    assert size[[1, 4]].max() < 1e-5 * size[[0, 2, 3, 5]].min()


def test_both_weights_learn():
    block = MeanField()

    probabilities(block).square().sum().backward()

    assert block.log_sharpness.grad.abs() > 1e-6
    assert block.message_weight.grad.abs() > 1e-6
    assert len(list(block.parameters())) == 2


def test_the_costs_of_all_points_sharpen_with_the_sharpness():
    soft, sharp = (probabilities(MeanField(sharpness)).amax(1) for sharpness in (1.0, 4.0))

    assert (sharp > soft).all()


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match="sharpness must be > 0"):
        MeanField(sharpness=0.0)
    with pytest.raises(ValueError, match="alphas are six weights, got 4"):
        MeanField(alphas=(1.0, 0.1, 1.0, 1.0))
