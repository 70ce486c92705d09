# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.autograd import grad

from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.coupled_convex import coupled_convex
from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.displacement_posterior import displacement_posterior
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume

SIZE = (7, 17, 19)
POINTS = 7 * 17 * 19


@pytest.fixture(params=[5, 100])
def chunks(request, monkeypatch):
    """Chunks of 5 and of 100 displacements of two items: fewer and more than the kernels take at once."""
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: request.param * 2 * POINTS * 4)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def assert_close_to_largest(found, expected, tolerance=2e-5):
    """Sums of many terms of either sign: the smallest results have lost the most digits."""
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("half_width", [(1, 2, 3), (8, 0, 1), (0, 1, 20)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_compiled_gradients_of_features_are_the_plain_ones(
    chunks, threads, half_width, symmetric, masked, compiled, plain
):
    features = torch.rand(2, 2, 5, *SIZE)
    masks = (torch.rand(2, 2, 1, *SIZE) > 0.4).float()
    names = ("fixed_mask", "moving_mask") if masked else ()
    volume = SSDCostVolume(*features, half_width, (3, 5), symmetric=symmetric, **dict(zip(names, masks, strict=False)))
    gradient = torch.randn(volume.batch, len(volume.labels), *SIZE)

    def pulled_back():
        return volume.pull_back(lambda start, cost: gradient[:, start : start + cost.shape[1]].clone())

    assert_close_to_largest(compiled(pulled_back), plain(pulled_back))


@pytest.mark.parametrize("labels", [2, 13, 77])
@pytest.mark.parametrize("couplings", [(), (0.05, 0.4, 0.2)])
def test_the_compiled_field_and_its_gradient_are_the_plain_ones(chunks, threads, labels, couplings, compiled, plain):
    displacements = torch.randn(labels, 3)
    cost = torch.rand(2, labels, *SIZE, requires_grad=True)
    weights = torch.randn(2, 3, *SIZE)

    def field_and_gradient():
        field = coupled_convex(DenseCostVolume(cost, displacements), couplings, sharpness=3.0)
        return field.detach(), *grad(field, cost, weights)

    assert_close_to_largest(compiled(field_and_gradient), plain(field_and_gradient))


@pytest.mark.parametrize("trend", [-50.0, 0.0, 50.0])
def test_the_compiled_moments_are_the_plain_ones(chunks, threads, trend, compiled, plain):
    slope = trend * torch.linspace(0, 1, 77).view(1, -1, 1, 1, 1)
    volume = DenseCostVolume(slope + torch.rand(2, 77, *SIZE), torch.randn(77, 3))
    field = torch.randn(2, 3, *SIZE)

    def moments():
        return displacement_posterior(volume, field, 0.3, 2.0)

    assert_close_to_largest(compiled(moments), plain(moments))


def test_costs_that_are_no_numbers_do_not_pass_for_some(compiled, plain):
    cost = torch.rand(1, 40, 2, 3, 4)
    cost[0, 17, 1, 2, 3] = torch.nan

    def field():
        return coupled_convex(DenseCostVolume(cost, torch.randn(40, 3)), sharpness=3.0)

    assert torch.equal(compiled(field).isnan(), plain(field).isnan())
    assert plain(field).isnan().any()
