# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.coupled_convex import coupled_convex
from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.displacement_posterior import displacement_posterior
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume, displacement_labels


def slow_posterior(cost, labels, field, coupling, sharpness):
    """Every probability of every displacement, in float64."""
    cost, labels, field = cost.double(), labels.double(), field.double()
    distance = (labels.view(1, -1, 3, 1, 1, 1) - field[:, None]).square().sum(2)
    logits = -sharpness * (cost + coupling * distance)
    p = logits.softmax(1)
    mean = torch.einsum("blijk,lc->bcijk", p, labels)
    deviation = labels.view(1, -1, 3, 1, 1, 1) - mean[:, None]
    return mean, torch.einsum("blijk,blcijk,bldijk->bcdijk", p, deviation, deviation), logits.logsumexp(1)


def assert_posterior_close(posterior, slow, atol):
    for name, found, expected in zip(posterior._fields, posterior, slow, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# costs that fall or rise along the labels move the running maximum in every chunk or in none
@pytest.mark.parametrize("trend", [-5.0, 0.0, 5.0])
@pytest.mark.parametrize(("coupling", "sharpness"), [(0.0, 1.0), (0.3, 20.0), (1.0, 0.1)])
@pytest.mark.parametrize("chunk_labels", [1, 4, 1000])
def test_the_moments_are_those_of_the_dense_probabilities(monkeypatch, chunk_labels, coupling, sharpness, trend):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: chunk_labels * 2 * 60 * 4)
    labels = displacement_labels((2, 1, 3), torch.zeros(1))
    slope = trend * torch.linspace(0, 1, len(labels)).view(1, -1, 1, 1, 1)
    cost, field = slope + torch.rand(2, len(labels), 3, 5, 4), torch.randn(2, 3, 3, 5, 4)

    posterior = displacement_posterior(DenseCostVolume(cost, labels), field, coupling, sharpness)

    assert_posterior_close(posterior, slow_posterior(cost, labels, field, coupling, sharpness), 1e-4)


def test_double_costs_have_double_moments():
    labels = displacement_labels((2, 1, 3), torch.zeros(1, dtype=torch.float64))
    cost = torch.rand(1, len(labels), 3, 5, 4, dtype=torch.float64)
    field = torch.randn(1, 3, 3, 5, 4, dtype=torch.float64)

    posterior = displacement_posterior(DenseCostVolume(cost, labels), field, 0.3, 20.0)

    slow = slow_posterior(cost, labels, field, 0.3, 20.0)
    assert all(moment.dtype == torch.float64 for moment in posterior)
    assert_posterior_close(posterior, slow, 1e-12)


def test_without_any_preference_the_window_is_uniform():
    labels = displacement_labels((1, 2, 0), torch.zeros(1))

    posterior = displacement_posterior(
        DenseCostVolume(torch.full((1, 15, 3, 5, 4), 0.7), labels), torch.randn(1, 3, 3, 5, 4), 0.0, 2.0
    )

    assert posterior.mean.abs().max() < 1e-6
    # variance of the whole numbers -h..h is h (h + 1) / 3
    variance = torch.diag(torch.tensor([2 / 3, 2.0, 0.0])).view(1, 3, 3, 1, 1, 1)
    torch.testing.assert_close(posterior.covariance, variance.expand(1, 3, 3, 3, 5, 4), atol=1e-6, rtol=0)
    expected = torch.tensor(15.0).log() - 2 * 0.7
    torch.testing.assert_close(posterior.log_sum_exp, expected.expand(1, 3, 5, 4))


@pytest.mark.parametrize("chunk_labels", [1, 1000])
def test_displacements_of_infinite_cost_have_no_share(monkeypatch, chunk_labels):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: chunk_labels * 60 * 4)
    labels = displacement_labels((2, 0, 0), torch.zeros(1))
    cost = torch.full((1, 5, 3, 5, 4), torch.inf)
    cost[:, 3:] = 1.0

    posterior = displacement_posterior(DenseCostVolume(cost, labels), torch.zeros(1, 3, 3, 5, 4), 0.0, 7.0)

    torch.testing.assert_close(posterior.mean[:, 0], torch.full((1, 3, 5, 4), 1.5))
    torch.testing.assert_close(posterior.covariance[:, 0, 0], torch.full((1, 3, 5, 4), 0.25))


@pytest.mark.parametrize("compat", [False, True])
def test_the_last_pass_of_a_search_can_be_asked_for(compat):
    fixed, moving = torch.randn(2, 2, 3, 6, 5, 7)
    volume = SSDCostVolume(fixed, moving, (2, 1, 2), compat=compat)

    before_last = coupled_convex(volume, (0.01, 0.1), 3.0, compat)
    posterior = displacement_posterior(volume, before_last, 0.5, 3.0)

    field = coupled_convex(volume, (0.01, 0.1, 0.5), 3.0, compat)
    torch.testing.assert_close(box_filter(posterior.mean, compat=compat), field)


def test_a_stronger_coupling_leaves_less_doubt():
    labels = displacement_labels((2, 2, 2), torch.zeros(1))
    volume = DenseCostVolume(torch.rand(1, 125, 3, 5, 4), labels)

    variance = [
        torch.einsum("bcc...->b...", displacement_posterior(volume, torch.zeros(1, 3, 3, 5, 4), c, 2.0).covariance)
        for c in (0.0, 0.3, 3.0)
    ]

    assert (variance[0] > variance[1]).all()
    assert (variance[1] > variance[2]).all()
