# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_reg_ext.engines import clip_gradients


@pytest.fixture
def network():
    """With gradients 3 and 4, and a weight that has none."""
    network = nn.ParameterDict({name: nn.Parameter(torch.ones(1)) for name in "abc"})
    (3 * network["a"] + 4 * network["b"]).sum().backward()
    return network


@pytest.mark.parametrize(("max_norm", "share"), [(1.0, 0.2), (10.0, 1.0)])
def test_only_long_gradients_are_shortened(network, max_norm, share):
    norm = clip_gradients(network, max_norm)

    assert norm == 5
    torch.testing.assert_close(network["a"].grad, torch.tensor([3 * share]))
    torch.testing.assert_close(network["b"].grad, torch.tensor([4 * share]))
    assert network["c"].grad is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_are(network, wrong):
    network["a"].grad.fill_(wrong)

    clip_gradients(network, 1.0)
    torch.optim.Adam(network.parameters()).step()

    assert [weight.item() for weight in network.values()] == [1, 1, 1]
