# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch import nn

from monai_reg_ext.engines import AutocastInferer
from monai_reg_ext.networks.layers import DisplacementDistribution, PlanarDistribution, search_grid

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


class Network(nn.Module):
    """One convolution that remembers the dtype it computed in and whatever else it was given."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.convolution = nn.Conv3d(1, 2, 3, padding=1, dtype=dtype)
        self.computed_in = None
        self.given = None

    def forward(self, image, *args, **kwargs):
        output = self.convolution(image)
        self.computed_in, self.given = output.dtype, (args, kwargs)
        return output


def image(device="cpu", dtype=torch.float32):
    return torch.randn(2, 1, 4, 5, 6, device=device, dtype=dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_the_network_computes_in_bfloat16_and_the_caller_gets_float32_close_to_it(device):
    network, scan = Network().to(device), image(device)

    output = AutocastInferer()(scan, network)

    assert network.computed_in == torch.bfloat16
    assert output.dtype == torch.float32
    # 8 bits of mantissa, sums of 28 terms of size 1 at most
    torch.testing.assert_close(output, network(scan), atol=0.05, rtol=0.02)


def test_what_follows_the_network_is_not_cast():
    inferer, network = AutocastInferer(), Network()

    inferer(image(), network)

    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(3, 3) @ torch.ones(3, 3)).dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_weights_learn_in_float32_what_they_would_without(device):
    network, scan = Network().to(device), image(device)
    wanted = torch.randn(2, 2, 4, 5, 6, device=device)
    gradients = []
    for inferer in (AutocastInferer(), SimpleInferer()):
        network.zero_grad()
        (inferer(scan, network) - wanted).square().mean().backward()
        gradients.append(network.convolution.weight.grad.clone())

    assert gradients[0].dtype == torch.float32
    assert 0 < (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


@pytest.mark.parametrize("planar", [False, True])
def test_a_distribution_of_displacements_comes_in_float32_too(planar):
    grid = search_grid((4, 5, 6), (2, 3, 4), (3, 3, 3), (1, 1, 1), torch.zeros(1))
    probabilities, offset = torch.rand(1, 3, 3, 3, 2, 3, 4), torch.rand(1, 3, 2, 3, 4)
    in_half = DisplacementDistribution(probabilities.bfloat16(), grid, offset.bfloat16())

    output = AutocastInferer()(image(), lambda scan: PlanarDistribution((in_half,) * 3) if planar else in_half)

    for part in output.planes if planar else [output]:
        assert part.probabilities.dtype == part.offset.dtype == torch.float32
        torch.testing.assert_close(part.probabilities, probabilities, atol=0, rtol=2**-8)
        assert part.grid is grid


def test_a_meta_tensor_keeps_its_place_in_space():
    affine = torch.tensor([[0.0, 2, 0, 5], [-1, 0, 0, 7], [0, 0, 3, 9], [0, 0, 0, 1]], dtype=torch.float64)

    output = AutocastInferer()(MetaTensor(image(), affine=affine), Network())

    assert isinstance(output, MetaTensor)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.affine, affine)


@pytest.mark.parametrize("enabled", [True, False])
def test_further_arguments_reach_the_network(enabled):
    network = Network()

    AutocastInferer(enabled)(image(), network, "mask", passes=2)

    assert network.given == (("mask",), {"passes": 2})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disabled_it_is_monais_simple_inferer(dtype):
    network, scan = Network(dtype), image(dtype=dtype)

    output = AutocastInferer(enabled=False)(scan, network)

    assert output.dtype == dtype
    assert torch.equal(output, SimpleInferer()(scan, network))
