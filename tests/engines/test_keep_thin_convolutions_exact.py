# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_reg_ext.engines import AutocastInferer, keep_thin_convolutions_exact


def leave_large_numbers_in_memory():
    for number in (1 << 10, 1 << 14, 1 << 16, 1 << 18):
        torch.full((number,), 3e30)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("planes", [1, 2, 3])
def test_kernels_of_a_coarse_grid_learn_what_they_would_in_float32(planes, recomputed):
    torch.manual_seed(0)
    network, volume = nn.Sequential(nn.Conv3d(24, 24, 3, padding=1)), torch.randn(1, 24, planes, 4, 5)
    slopes = torch.randn(1, 24, planes, 4, 5)
    (expected,) = torch.autograd.grad((network(volume) * slopes).sum(), network[0].weight)
    inferer = AutocastInferer()

    for _ in range(8):
        leave_large_numbers_in_memory()
        network.zero_grad()
        output = checkpoint(inferer, volume, network, use_reentrant=False) if recomputed else inferer(volume, network)
        (output * slopes).sum().backward()

        torch.testing.assert_close(network[0].weight.grad, expected, rtol=0.05, atol=0.5)


def test_only_thin_volumes_are_computed_in_float32_and_only_under_autocast():
    convolution = nn.Conv3d(1, 1, 3, padding=1)
    keep_thin_convolutions_exact(convolution)
    keep_thin_convolutions_exact(convolution)

    with torch.autocast("cpu", torch.bfloat16):
        found = {planes: convolution(torch.rand(1, 1, planes, 4, 3)).dtype for planes in (1, 2, 4)}
        assert torch.is_autocast_enabled("cpu")

    assert found == {1: torch.bfloat16, 2: torch.float32, 4: torch.bfloat16}
    assert convolution.double()(torch.rand(1, 1, 2, 4, 3).double()).dtype == torch.float64


def test_a_convolution_that_fails_leaves_autocast_on():
    convolution = nn.Conv3d(2, 1, 3)
    keep_thin_convolutions_exact(convolution)

    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            convolution(torch.rand(1, 1, 2, 4, 3))

        assert torch.is_autocast_enabled("cpu")
