# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.coupled_convex import COUPLINGS, coupled_convex
from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume, displacement_labels


def slow_smooth(field, compat):
    weight = uniform_filter(np.ones(field.shape[1:]), 3, mode="constant")
    smooth = np.stack([uniform_filter(component, 3, mode="constant") for component in field])
    return smooth if compat else smooth / weight


def slow_coupled_convex(cost, labels, compat, box=None):
    """The whole penalty |d - u|^2 for every label and position, in float64; beyond a box its border goes on."""
    inside = np.ix_(
        *(
            np.clip(np.arange(n), *ends)
            for n, ends in zip(cost.shape[1:], box or [(0, n - 1) for n in cost.shape[1:]], strict=True)
        )
    )
    labels = labels.T.reshape(3, -1, 1, 1, 1)
    start = cost if compat else cost + 1e-5 * (labels**2).sum(0)
    field = slow_smooth(labels[:, start.argmin(0)[inside], 0, 0, 0], compat)
    for coupling in COUPLINGS:
        penalty = coupling * ((labels - field[:, None]) ** 2).sum(0)
        field = slow_smooth(labels[:, (cost + penalty).argmin(0)[inside], 0, 0, 0], compat)
    return field


def random_cost(half_width, size=(6, 5, 7), batch=2):
    """Smooth random cost volume without ties, and its labels."""
    labels = displacement_labels(half_width, torch.zeros(1))
    return box_filter(8 * torch.rand(batch, len(labels), *size), (3, 3)), labels


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: 2 * 6 * 5 * 7 * 4 * 17)


def dense_search(cost, labels, *settings, **more_settings):
    return coupled_convex(DenseCostVolume(cost, labels), *settings, **more_settings)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_field_is_that_of_the_dense_penalty_in_float64(compat, dtype, small_chunks):
    cost, labels = random_cost((3, 1, 3))

    field = dense_search(cost.to(dtype), labels.to(dtype), compat=compat)

    slow = [slow_coupled_convex(item, labels.double().numpy(), compat) for item in cost.double().numpy()]
    np.testing.assert_allclose(field.numpy(), np.stack(slow), atol=1e-6)
    assert field.abs().max() > 0.3


@pytest.mark.parametrize("compat", [False, True])
def test_displacements_outside_a_mask_are_those_at_its_border(compat, small_chunks):
    cost, labels = random_cost((3, 1, 3))
    boxes = [[(1, 3), (0, 2), (3, 6)], [(2, 2), (4, 4), (0, 5)]]
    mask = torch.zeros(2, 1, 6, 5, 7)
    for item, ends in enumerate(boxes):
        mask[(item, 0, *(slice(first, last + 1) for first, last in ends))] = 1

    field = dense_search(cost, labels, compat=compat, mask=mask)

    pairs = zip(cost.double().numpy(), boxes, strict=True)
    slow = [slow_coupled_convex(item, labels.double().numpy(), compat, box) for item, box in pairs]
    np.testing.assert_allclose(field.numpy(), np.stack(slow), atol=1e-6)
    assert (field - dense_search(cost, labels, compat=compat)).abs().max() > 0.3


@pytest.mark.parametrize("sharpness", [None, 5.0])
def test_costs_outside_a_mask_have_no_influence_on_the_field(sharpness):
    cost, labels = random_cost((2, 1, 2))
    mask = (torch.rand(2, 1, 6, 5, 7) > 0.5).float()
    other = torch.where(mask > 0, cost, 8 * torch.rand_like(cost))

    field = dense_search(cost, labels, sharpness=sharpness, mask=mask)

    assert torch.equal(dense_search(other, labels, sharpness=sharpness, mask=mask), field)


@pytest.mark.parametrize("sharpness", [None, 5.0])
def test_a_mask_of_ones_changes_no_bit(sharpness):
    cost, labels = random_cost((2, 1, 2))

    masked = dense_search(cost, labels, sharpness=sharpness, mask=torch.ones(2, 1, 6, 5, 7))

    assert torch.equal(masked, dense_search(cost, labels, sharpness=sharpness))


def test_a_mask_of_another_shape_is_refused():
    cost, labels = random_cost((1, 0, 1))

    with pytest.raises(ValueError, match=r"mask of shape \(2, 1, 6, 5, 7\), .* got \(1, 1, 6, 5, 7\)"):
        dense_search(cost, labels, mask=torch.ones(1, 1, 6, 5, 7))


def test_the_labels_may_come_in_any_order():
    cost, labels = random_cost((2, 1, 2))
    order = torch.randperm(len(labels))

    torch.testing.assert_close(dense_search(cost[:, order], labels[order]), dense_search(cost, labels))


def test_one_sharp_minimum_is_kept_at_the_border_where_compat_shrinks_it():
    cheap = torch.tensor([2.0, -1, 1])
    labels = displacement_labels((2, 2, 2), cheap)
    cost = 1000 * (labels - cheap).square().sum(1).view(1, -1, 1, 1, 1).expand(1, -1, 5, 6, 7)

    exact, reference = dense_search(cost, labels)[0], dense_search(cost, labels, compat=True)[0]

    torch.testing.assert_close(exact, cheap.view(3, 1, 1, 1).expand(3, 5, 6, 7))
    torch.testing.assert_close(reference[:, 2, 3, 3], cheap)
    torch.testing.assert_close(reference[:, 2, 3, 6], cheap * 2 / 3)
    torch.testing.assert_close(reference[:, 0, 0, 0], cheap * 8 / 27)


def test_where_nothing_can_be_told_apart_nothing_moves():
    labels = displacement_labels((3, 1, 2), torch.zeros(1))

    field = dense_search(torch.full((1, len(labels), 4, 5, 6), 0.7), labels)

    assert torch.equal(field, torch.zeros(1, 3, 4, 5, 6))


def test_the_ties_of_compat_go_to_the_lowest_label(small_chunks):
    labels = displacement_labels((3, 1, 2), torch.zeros(1))

    field = dense_search(torch.zeros(1, len(labels), 9, 9, 9), labels, couplings=(), compat=True)

    assert field[0, :, 4, 4, 4].tolist() == pytest.approx([-3, -1, -2])


@pytest.mark.parametrize("compat", [False, True])
def test_scaled_features_need_their_square_as_scale_of_the_couplings(compat):
    fixed, moving = torch.randn(2, 1, 4, 6, 5, 7)

    field = coupled_convex(SSDCostVolume(fixed, moving, (2, 2, 1)), compat=compat)
    scaled_volume = SSDCostVolume(4 * fixed, 4 * moving, (2, 2, 1))
    scaled = coupled_convex(scaled_volume, [16 * coupling for coupling in COUPLINGS], compat=compat)

    torch.testing.assert_close(scaled, field)


def test_stronger_couplings_give_a_smoother_field():
    cost, labels = random_cost((3, 1, 3))

    roughness = [
        dense_search(cost, labels, [factor * coupling for coupling in COUPLINGS]).diff(dim=-1).square().mean()
        for factor in (0.01, 1, 100)
    ]

    assert roughness[0] > roughness[1] > roughness[2]


def test_items_of_a_batch_do_not_see_each_other():
    cost, labels = random_cost((2, 1, 2))

    field = dense_search(cost, labels)

    for item in range(2):
        torch.testing.assert_close(field[item : item + 1], dense_search(cost[item : item + 1], labels))


def test_mixed_precision_does_not_blur_the_search():
    cost, labels = random_cost((3, 1, 3))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = dense_search(cost, labels)

    assert torch.equal(field, dense_search(cost, labels))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
def test_a_streamed_volume_gives_the_field_of_the_dense_one(small_chunks, symmetric, compat):
    fixed, moving = torch.randn(2, 2, 4, 6, 5, 7)
    kept = SSDCostVolume(fixed, moving, (3, 1, 3), symmetric=symmetric)
    streamed = SSDCostVolume(fixed, moving, (3, 1, 3), symmetric=symmetric, memory=0)

    cost = torch.cat([cost for _, cost in kept], 1)
    field = dense_search(cost, kept.labels, compat=compat)

    assert torch.equal(coupled_convex(kept, compat=compat), field)
    assert torch.equal(coupled_convex(streamed, compat=compat), field)


@pytest.mark.parametrize("sharpness", [None, 5.0])
def test_the_second_half_of_a_symmetric_search_is_the_negated_opposite_field(sharpness):
    # displacements of two cells at most: wider ones leave the grid with all that the boxes see, and tie
    fixed, moving = torch.randn(2, 2, 4, 6, 5, 7)

    both = coupled_convex(SSDCostVolume(fixed, moving, (2, 1, 2), symmetric=True), sharpness=sharpness)

    forward = coupled_convex(SSDCostVolume(fixed, moving, (2, 1, 2)), sharpness=sharpness)
    backward = coupled_convex(SSDCostVolume(moving, fixed, (2, 1, 2)), sharpness=sharpness)
    torch.testing.assert_close(both, torch.cat([forward, -backward]))


@pytest.mark.parametrize("compat", [False, True])
def test_a_sharp_expectation_is_the_displacement_of_least_cost(compat):
    cost, labels = random_cost((3, 1, 3))
    cost = 100 * cost.double()  # far apart, so that no second displacement is left a share
    labels = labels.double()
    couplings = [100 * coupling for coupling in COUPLINGS]

    sharp = dense_search(cost, labels, couplings, 1e4, compat)

    torch.testing.assert_close(sharp, dense_search(cost, labels, couplings, compat=compat), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sharpness", [0.5, 50.0])
def test_an_expectation_without_preference_does_not_move(sharpness):
    labels = displacement_labels((3, 1, 2), torch.zeros(1))

    field = dense_search(torch.full((1, len(labels), 4, 5, 6), 0.7), labels, sharpness=sharpness)

    assert field.abs().max() < 1e-6


@pytest.mark.parametrize("sharpness", [0, -1.0, float("nan")])
def test_a_sharpness_that_would_prefer_high_costs_is_refused(sharpness):
    cost, labels = random_cost((1, 0, 1))

    with pytest.raises(ValueError, match="sharpness must be > 0"):
        dense_search(cost, labels, sharpness=sharpness)


def test_the_best_displacement_has_no_gradients():
    cost, labels = random_cost((1, 0, 1))

    assert not dense_search(cost.requires_grad_(), labels).requires_grad


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_golden_fields_in_both_directions(golden_convex, direction):
    golden = golden_convex
    pair = [golden["fixed"], golden["moving"]]
    fixed, moving = pair if direction == "fwd" else reversed(pair)

    field = coupled_convex(SSDCostVolume(fixed, moving, golden["half_width"], compat=True), compat=True)

    torch.testing.assert_close(field, golden[f"displacement_{direction}"], rtol=0, atol=1e-5)
