# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.losses import WarpedLabelLoss

SIZE = (6, 7, 8)


def box(value, *corner):
    label = torch.zeros(1, 1, *SIZE, dtype=torch.int32)
    i, j, k = corner
    label[:, :, i : i + 2, j : j + 3, k : k + 2] = value
    return label


def shifted(*shift):
    return torch.tensor(shift, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)


def target(moving, fixed):
    return torch.cat([moving, fixed], 1)


def test_the_shift_that_leads_to_the_moving_label_costs_nothing():
    labels = target(box(5, 2, 1, 4), box(5, 1, 3, 2))

    loss = WarpedLabelLoss(labels=(0, 5), dice=1.0)(shifted(1, -2, 2), labels)

    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert WarpedLabelLoss(labels=(0, 5), dice=1.0)(shifted(0, 0, 0), labels) > 0.5


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_squared_errors_are_weighted_by_the_frequency_of_the_labels_present(exponent):
    # two boxes of 12 voxels apart: both classes differ in 24 voxels; class 9 occurs nowhere
    labels = target(box(5, 0, 0, 0), box(5, 3, 4, 5))
    voxels = SIZE[0] * SIZE[1] * SIZE[2]
    weights = torch.tensor([2 * voxels - 24.0, 24.0]) ** -exponent
    weights = 2 * weights / weights.sum()

    loss = WarpedLabelLoss(labels=(0, 5, 9), exponent=exponent)(shifted(0, 0, 0), labels)

    torch.testing.assert_close(loss, weights.sum() * 24 / voxels)


def test_the_background_can_have_a_weight_of_its_own():
    labels = target(box(5, 0, 0, 0), box(5, 3, 4, 5))

    losses = [WarpedLabelLoss((0, 5), 0.0, background=weight)(shifted(0, 0, 0), labels) for weight in (0.0, 0.25, 1.0)]

    torch.testing.assert_close(torch.stack(losses) / losses[0], torch.tensor([1.0, 1.25, 2.0]))


def test_soft_dice_counts_each_foreground_class_that_is_there():
    fixed = box(5, 1, 1, 1)
    fixed[:, :, 4, 5, 6] = 2
    moving = box(5, 2, 1, 1)  # one of the two planes overlaps: 6 of 12 voxels; class 2 is lost
    loss = WarpedLabelLoss((0, 2, 5, 7), dice=1.0)

    found = loss(shifted(0, 0, 0), target(moving, fixed)) - WarpedLabelLoss((0, 2, 5, 7))(
        shifted(0, 0, 0), target(moving, fixed)
    )

    torch.testing.assert_close(found, torch.tensor(1 - (2 * 6 / 24 + 0) / 2))


def test_diffusion_adds_the_mean_squared_differences_of_neighbours():
    field = shifted(0, 0, 0).clone()
    field[:, 1] = 0.5 * torch.arange(SIZE[2])  # one channel rises along the last axis
    labels = torch.zeros(1, 2, *SIZE, dtype=torch.int32)

    assert WarpedLabelLoss((0,), diffusion=3.0)(field, labels).item() == pytest.approx(3 * 0.25 / 3)


def test_gradients_lead_towards_the_label():
    labels = target(box(5, 2, 2, 3), box(5, 1, 2, 3))
    field = shifted(0.2, 0, 0).clone().requires_grad_()

    WarpedLabelLoss((0, 5))(field, labels).backward()

    assert field.grad[:, 0].sum() < 0  # a larger shift along the first axis would cost less


def test_a_class_the_loss_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"holds the classes \[5\], the loss knows \[0, 4\]"):
        WarpedLabelLoss((0, 4))(shifted(0, 0, 0), target(box(5, 0, 0, 0), box(4, 0, 0, 0)))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"ddf \(B, 3, I, J, K\) and label maps \(B, 2, I, J, K\)"):
        WarpedLabelLoss((0, 5))(shifted(0, 0, 0), box(5, 0, 0, 0))
