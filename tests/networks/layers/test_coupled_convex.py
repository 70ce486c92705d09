# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.coupled_convex import COUPLINGS, coupled_convex
from monai_reg_ext.networks.layers.ssd_cost_volume import displacement_labels, ssd_cost_volume


def slow_smooth(field, compat):
    weight = uniform_filter(np.ones(field.shape[1:]), 3, mode="constant")
    smooth = np.stack([uniform_filter(component, 3, mode="constant") for component in field])
    return smooth if compat else smooth / weight


def slow_coupled_convex(cost, labels, compat):
    """The whole penalty |d - u|^2 for every label and position, in float64."""
    labels = labels.T.reshape(3, -1, 1, 1, 1)
    start = cost if compat else cost + 1e-5 * (labels**2).sum(0)
    field = slow_smooth(labels[:, start.argmin(0), 0, 0, 0], compat)
    for coupling in COUPLINGS:
        penalty = coupling * ((labels - field[:, None]) ** 2).sum(0)
        field = slow_smooth(labels[:, (cost + penalty).argmin(0), 0, 0, 0], compat)
    return field


def random_cost(half_width, size=(6, 5, 7), batch=2):
    """Smooth random cost volume without ties, and its labels."""
    labels = displacement_labels(half_width, torch.zeros(1))
    return box_filter(8 * torch.rand(batch, len(labels), *size), (3, 3)), labels


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(coupled_convex.__globals__, "_CHUNK_ELEMENTS", 2 * 147 * 17)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_field_is_that_of_the_dense_penalty_in_float64(compat, dtype, small_chunks):
    cost, labels = random_cost((3, 1, 3))

    field = coupled_convex(cost.to(dtype), labels.to(dtype), compat=compat)

    slow = [slow_coupled_convex(item, labels.double().numpy(), compat) for item in cost.double().numpy()]
    np.testing.assert_allclose(field.numpy(), np.stack(slow), atol=1e-6)
    assert field.abs().max() > 0.3


def test_the_labels_may_come_in_any_order():
    cost, labels = random_cost((2, 1, 2))
    order = torch.randperm(len(labels))

    torch.testing.assert_close(coupled_convex(cost[:, order], labels[order]), coupled_convex(cost, labels))


def test_one_sharp_minimum_is_kept_at_the_border_where_compat_shrinks_it():
    cheap = torch.tensor([2.0, -1, 1])
    labels = displacement_labels((2, 2, 2), cheap)
    cost = 1000 * (labels - cheap).square().sum(1).view(1, -1, 1, 1, 1).expand(1, -1, 5, 6, 7)

    exact, reference = coupled_convex(cost, labels)[0], coupled_convex(cost, labels, compat=True)[0]

    torch.testing.assert_close(exact, cheap.view(3, 1, 1, 1).expand(3, 5, 6, 7))
    torch.testing.assert_close(reference[:, 2, 3, 3], cheap)
    torch.testing.assert_close(reference[:, 2, 3, 6], cheap * 2 / 3)
    torch.testing.assert_close(reference[:, 0, 0, 0], cheap * 8 / 27)


def test_where_nothing_can_be_told_apart_nothing_moves():
    labels = displacement_labels((3, 1, 2), torch.zeros(1))

    field = coupled_convex(torch.full((1, len(labels), 4, 5, 6), 0.7), labels)

    assert torch.equal(field, torch.zeros(1, 3, 4, 5, 6))


def test_the_ties_of_compat_go_to_the_lowest_label():
    labels = displacement_labels((3, 1, 2), torch.zeros(1))

    field = coupled_convex(torch.zeros(1, len(labels), 9, 9, 9), labels, couplings=(), compat=True)

    assert field[0, :, 4, 4, 4].tolist() == pytest.approx([-3, -1, -2])


@pytest.mark.parametrize("compat", [False, True])
def test_scaled_features_need_their_square_as_scale_of_the_couplings(compat):
    fixed, moving = torch.randn(2, 1, 4, 6, 5, 7)
    labels = displacement_labels((2, 2, 1), fixed)

    field = coupled_convex(ssd_cost_volume(fixed, moving, (2, 2, 1)), labels, compat=compat)
    scaled_cost = ssd_cost_volume(4 * fixed, 4 * moving, (2, 2, 1))
    scaled = coupled_convex(scaled_cost, labels, [16 * coupling for coupling in COUPLINGS], compat)

    torch.testing.assert_close(scaled, field)


def test_stronger_couplings_give_a_smoother_field():
    cost, labels = random_cost((3, 1, 3))

    roughness = [
        coupled_convex(cost, labels, [factor * coupling for coupling in COUPLINGS]).diff(dim=-1).square().mean()
        for factor in (0.01, 1, 100)
    ]

    assert roughness[0] > roughness[1] > roughness[2]


def test_items_of_a_batch_do_not_see_each_other():
    cost, labels = random_cost((2, 1, 2))

    field = coupled_convex(cost, labels)

    for item in range(2):
        torch.testing.assert_close(field[item : item + 1], coupled_convex(cost[item : item + 1], labels))


def test_mixed_precision_does_not_blur_the_search():
    cost, labels = random_cost((3, 1, 3))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = coupled_convex(cost, labels)

    assert torch.equal(field, coupled_convex(cost, labels))


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_golden_fields_in_both_directions(golden_convex, direction):
    golden = golden_convex
    pair = [golden["fixed"], golden["moving"]]
    fixed, moving = pair if direction == "fwd" else reversed(pair)

    cost = ssd_cost_volume(fixed, moving, golden["half_width"], compat=True)
    field = coupled_convex(cost, golden["labels"], compat=True)

    torch.testing.assert_close(field, golden[f"displacement_{direction}"], rtol=0, atol=1e-5)
