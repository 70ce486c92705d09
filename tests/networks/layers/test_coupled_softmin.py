# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.autograd.graph import saved_tensors_hooks

from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.coupled_convex import coupled_convex
from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume, displacement_labels, ssd_cost_volume

HALF_WIDTH = (1, 2, 1)
COUPLINGS = (0.05, 0.4)
SHARPNESS = 1.5


def slow_softmin(cost, labels, compat=False, couplings=COUPLINGS, sharpness=SHARPNESS, box=(...,)):
    """All probabilities at once, differentiated by autograd; beyond a box its border goes on."""
    field = torch.zeros(len(cost), 3, *cost.shape[2:], dtype=cost.dtype)
    for coupling in (0, *couplings):
        distance = (labels.view(1, -1, 3, 1, 1, 1) - field[:, None]).square().sum(2)
        p = (-sharpness * (cost + coupling * distance)).softmax(1)
        field = box_filter(torch.einsum("blijk,lc->bcijk", p, labels)[box], compat=compat)
    return field


def slow_softmin_of_features(fixed, moving, symmetric, compat, **settings):
    cost = ssd_cost_volume(fixed, moving, HALF_WIDTH, compat=compat)
    if symmetric:
        backward = ssd_cost_volume(moving, fixed, HALF_WIDTH, compat=compat)
        cost = torch.cat([cost, backward.flip(1)])  # labels in reverse are the negated labels
    return slow_softmin(cost, displacement_labels(HALF_WIDTH, cost), compat, **settings)


def features(batch=1, dtype=torch.float64, requires_grad=True):
    return (torch.randn(batch, 2, 4, 3, 5, dtype=dtype, requires_grad=requires_grad) for _ in range(2))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: 7 * 60 * 8)


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
def test_field_and_gradients_are_those_of_plain_autograd(small_chunks, compat, symmetric, memory):
    fixed, moving = features(batch=2)

    volume = SSDCostVolume(fixed, moving, HALF_WIDTH, compat=compat, symmetric=symmetric, memory=memory)
    field = coupled_convex(volume, COUPLINGS, SHARPNESS, compat)

    slow = slow_softmin_of_features(fixed, moving, symmetric, compat)
    gradient = torch.randn_like(field)
    torch.testing.assert_close(field, slow)
    torch.testing.assert_close(grad(field, (fixed, moving), gradient), grad(slow, (fixed, moving), gradient))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
def test_gradients_of_features_are_those_of_finite_differences(small_chunks, compat, symmetric):
    def field_of(fixed, moving):
        volume = SSDCostVolume(fixed, moving, HALF_WIDTH, compat=compat, symmetric=symmetric)
        return coupled_convex(volume, COUPLINGS, SHARPNESS, compat)

    assert gradcheck(field_of, tuple(features()), fast_mode=True)


@pytest.mark.parametrize("couplings", [(), (0.4,), (0.05, 0.2, 0.4)])
@pytest.mark.parametrize("compat", [False, True])
def test_gradients_of_learned_costs_are_those_of_finite_differences(small_chunks, compat, couplings):
    labels = torch.randn(9, 3, dtype=torch.float64)
    cost = torch.randn(2, 9, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def field_of(cost):
        return coupled_convex(DenseCostVolume(cost, labels), couplings, SHARPNESS, compat)

    assert gradcheck(field_of, cost)
    torch.testing.assert_close(field_of(cost), slow_softmin(cost, labels, compat, couplings))


@pytest.mark.parametrize("compat", [False, True])
def test_field_and_gradients_with_a_mask_are_those_of_plain_autograd(small_chunks, compat):
    labels = torch.randn(9, 3, dtype=torch.float64)
    cost = torch.randn(1, 9, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(1, 1, 4, 3, 5)
    mask[..., 1:3, :2, 2:3] = 1
    i, j, k = torch.arange(4).clamp(1, 2), torch.arange(3).clamp(0, 1), torch.arange(5).clamp(2, 2)

    field = coupled_convex(DenseCostVolume(cost, labels), COUPLINGS, SHARPNESS, compat, mask)

    slow = slow_softmin(cost, labels, compat, box=(..., i[:, None, None], j[:, None], k))
    gradient = torch.randn_like(field)
    torch.testing.assert_close(field, slow)
    torch.testing.assert_close(grad(field, cost, gradient), grad(slow, cost, gradient))


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_of_features_with_masks_are_those_of_finite_differences(small_chunks, symmetric):
    masks = (torch.rand(2, 1, 1, 4, 3, 5) > 0.5).double()

    def field_of(fixed, moving):
        volume = SSDCostVolume(
            fixed, moving, HALF_WIDTH, symmetric=symmetric, fixed_mask=masks[0], moving_mask=masks[1]
        )
        return coupled_convex(volume, COUPLINGS, SHARPNESS, mask=volume.mask)

    assert gradcheck(field_of, tuple(features()), fast_mode=True)


def test_gradients_in_float32_are_close_to_those_in_float64():
    fixed, moving = features(dtype=torch.float32)
    settings = {"couplings": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "sharpness": 20.0}

    field = coupled_convex(SSDCostVolume(fixed, moving, HALF_WIDTH), **settings)
    gradients = grad(field.square().sum(), (fixed, moving))

    fixed, moving = (side.detach().double().requires_grad_() for side in (fixed, moving))
    slow = slow_softmin_of_features(fixed, moving, False, False, **settings)
    expected = grad(slow.square().sum(), (fixed, moving))
    torch.testing.assert_close(field.double(), slow, rtol=0, atol=1e-5)
    for found, exact in zip(gradients, expected, strict=True):
        assert (found - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.parametrize("learned", [0, 1])
def test_only_one_of_the_images_may_be_learned(learned):
    pair = [side.detach() for side in features()]
    pair[learned].requires_grad_()

    field = coupled_convex(SSDCostVolume(*pair, HALF_WIDTH), COUPLINGS, SHARPNESS)
    field.square().sum().backward()

    slow = slow_softmin_of_features(*pair, False, False)
    torch.testing.assert_close(pair[learned].grad, grad(slow.square().sum(), pair[learned])[0])
    assert pair[1 - learned].grad is None


def test_half_features_are_searched_in_float32_and_get_half_gradients():
    fixed, moving = (side.detach().half().requires_grad_() for side in features())

    field = coupled_convex(SSDCostVolume(fixed, moving, HALF_WIDTH), COUPLINGS, SHARPNESS)
    field.square().sum().backward()

    torch.testing.assert_close(field, slow_softmin_of_features(fixed.float(), moving.float(), False, False))
    assert fixed.grad.dtype == moving.grad.dtype == torch.float16


def test_what_is_kept_for_the_gradient_does_not_grow_with_the_window():
    fixed, moving = features()
    kept = []

    def note(tensor):
        kept.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        coupled_convex(SSDCostVolume(fixed, moving, (3, 2, 4), memory=0), COUPLINGS, SHARPNESS)

    assert sum(kept) == 2 * 2 * 60 + 3 * 10 * 60  # both features, ten values per point and pass


def test_features_changed_in_place_before_the_gradient_are_noticed():
    fixed, moving = features()
    changed = fixed * 1

    field = coupled_convex(SSDCostVolume(changed, moving, HALF_WIDTH), COUPLINGS, SHARPNESS)
    changed.mul_(2)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        field.sum().backward()


def test_mixed_precision_does_not_blur_field_and_gradients():
    fixed, moving = features(dtype=torch.float32)

    def field_and_gradients():
        field = coupled_convex(SSDCostVolume(fixed, moving, HALF_WIDTH), COUPLINGS, SHARPNESS)
        return field, *grad(field.square().sum(), (fixed, moving))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred = field_and_gradients()

    for found, expected in zip(blurred, field_and_gradients(), strict=True):
        assert torch.equal(found, expected)
