# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

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


def test_labels_are_warped_linearly():
    # half a voxel off, each of the box's two ends is half right: 2 x 6 voxels, off by 0.5 in both classes
    labels = target(box(5, 2, 2, 3), box(5, 2, 2, 3))

    loss = WarpedLabelLoss(labels=(0, 5), exponent=0.0)(shifted(0.5, 0, 0), labels)

    torch.testing.assert_close(loss, torch.tensor(2 * 12 * 0.25 / (6 * 7 * 8)))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_squared_errors_are_weighted_by_the_frequency_of_the_labels_present(exponent):
    # two boxes of 12 voxels apart: both classes differ in 24 voxels; class 9 occurs nowhere
    labels = target(box(5, 0, 0, 0), box(5, 3, 4, 5))
    voxels = SIZE[0] * SIZE[1] * SIZE[2]
    weights = torch.tensor([2 * voxels - 24.0, 24.0]) ** -exponent
    weights = 2 * weights / weights.sum()

    loss = WarpedLabelLoss(labels=(0, 5, 9), exponent=exponent)(shifted(0, 0, 0), labels)

    torch.testing.assert_close(loss, weights.sum() * 24 / voxels)


@pytest.mark.parametrize("background", [None, 0.0, 0.25, 1.0])
def test_labels_of_both_images_are_counted_and_the_background_can_have_a_weight_of_its_own(background):
    fixed, moving = box(5, 0, 0, 0), box(5, 2, 4, 4) + box(5, 4, 4, 4)  # 12 and 24 voxels apart
    voxels = SIZE[0] * SIZE[1] * SIZE[2]
    weights = torch.tensor([2 * voxels - 36.0, 36.0]) ** -0.5
    weights = 2 * weights / weights.sum()
    if background is not None:
        weights[0] = background

    loss = WarpedLabelLoss((0, 5), background=background)(shifted(0, 0, 0), target(moving, fixed))

    torch.testing.assert_close(loss, weights.sum() * 36 / voxels)


def test_soft_dice_counts_each_foreground_class_that_is_there():
    fixed = box(5, 1, 1, 1)
    fixed[:, :, 4, 5, 6] = 2
    moving = box(5, 2, 1, 1)  # one of the two planes overlaps: 6 of 12 voxels; class 2 is lost
    loss = WarpedLabelLoss((0, 2, 5, 7), dice=3.0)

    found = loss(shifted(0, 0, 0), target(moving, fixed)) - WarpedLabelLoss((0, 2, 5, 7))(
        shifted(0, 0, 0), target(moving, fixed)
    )

    torch.testing.assert_close(found, torch.tensor(3 * (1 - (2 * 6 / 24 + 0) / 2)))


def test_the_loss_of_a_batch_is_the_mean_of_its_items_losses():
    # different frequencies: neither weights nor overlaps may be taken together
    items = [target(box(5, 0, 0, 0), box(5, 3, 4, 5)), target(box(5, 1, 1, 1), box(5, 2, 1, 1))]
    items[1][:, :, :2] = 5
    fields = [shifted(0, 0.5, 0), shifted(0.25, 0, -1)]
    loss = WarpedLabelLoss((0, 5), background=0.3, dice=0.7, diffusion=2.0)

    together = loss(torch.cat(fields), torch.cat(items))

    apart = torch.stack([loss(field, item) for field, item in zip(fields, items, strict=True)])
    assert (apart[0] - apart[1]).abs() > 0.1
    torch.testing.assert_close(together, apart.mean())


def test_a_class_that_only_the_moving_image_has_counts_as_lost():
    # warped far away, it is in neither image: nothing is left to overlap
    moving = box(5, 2, 2, 2)
    loss, plain = WarpedLabelLoss((0, 5, 7), dice=1.0), WarpedLabelLoss((0, 5, 7))
    labels = target(moving, torch.zeros_like(moving))

    found = loss(shifted(0, 0, 0), labels) - plain(shifted(0, 0, 0), labels)

    torch.testing.assert_close(found, torch.tensor(1.0))


@pytest.mark.parametrize("exponent", [0.0, 0.35])
def test_cross_entropy_counts_how_little_is_left_of_each_fixed_label(exponent):
    # shifted by a quarter: of the 2 x 3 x 2 box, one plane of 6 voxels keeps 3/4 of its label, the other one all of it;
    # a plane of background before it keeps 3/4
    labels = target(box(5, 2, 2, 3), box(5, 2, 2, 3))
    voxels = SIZE[0] * SIZE[1] * SIZE[2]
    weights = torch.tensor([2 * voxels - 24.0, 24.0]) ** -exponent
    weights = 2 * weights / weights.sum()

    loss = WarpedLabelLoss((0, 5, 9), exponent, error="cross_entropy")(shifted(0.25, 0, 0), labels)

    torch.testing.assert_close(loss, -weights.sum() * 6 * torch.tensor(0.75).log() / voxels)


def test_cross_entropy_of_a_label_that_is_lost_is_bounded_and_has_no_gradient():
    # class 5 of 12 voxels is nowhere near
    field = shifted(0, 0, 0).clone().requires_grad_()

    loss = WarpedLabelLoss((0, 5), 0.0, error="cross_entropy")(field, target(box(5, 0, 0, 0), box(5, 3, 4, 5)))
    loss.backward()

    voxels = SIZE[0] * SIZE[1] * SIZE[2]
    torch.testing.assert_close(loss, -2 * 12 * torch.tensor(0.01).log() / voxels)  # 12 of either class
    assert field.grad.isfinite().all()
    assert not field.grad[..., 3:5, 4:7, 5:7].any()


def test_an_unknown_error_is_refused():
    with pytest.raises(ValueError, match=r"one of \('squared', 'cross_entropy'\), got 'mse'"):
        WarpedLabelLoss((0, 5), error="mse")


@pytest.mark.parametrize("there", [False, True])
def test_soft_dice_of_images_without_foreground_costs_nothing(there):
    nothing = torch.zeros(1, 2, *SIZE, dtype=torch.int32)
    labels = torch.cat([nothing, target(box(5, 2, 2, 3), box(5, 1, 2, 3))]) if there else nothing
    field = shifted(0, 0, 0).expand(len(labels), -1, -1, -1, -1).clone().requires_grad_()

    loss = WarpedLabelLoss((0, 5), dice=1.0)(field, labels)
    loss.backward()

    assert loss.isfinite()
    assert field.grad.isfinite().all()
    assert there or loss == 0


def test_diffusion_counts_every_axis_and_component():
    slopes = torch.tensor([[0.5, -1.0, 0.25], [0.0, 2.0, -0.5], [1.5, 0.75, 0.0]])  # component, axis
    voxels = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in SIZE], indexing="ij"))
    labels = torch.zeros(1, 2, *SIZE, dtype=torch.int32)

    loss = WarpedLabelLoss((0,), exponent=0.0, diffusion=1.5)(
        torch.einsum("ca,aijk->cijk", slopes, voxels)[None], labels
    )

    torch.testing.assert_close(loss, 1.5 * slopes.square().mean(0).sum())


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


@pytest.mark.parametrize("error", ["squared", "cross_entropy"])
@pytest.mark.parametrize("component", [0, 1, 2])
def test_gradients_are_those_of_small_steps(component, error):
    labels = target(box(5, 2, 2, 3), box(5, 1, 3, 2))
    loss = WarpedLabelLoss((0, 5, 9), background=0.4, dice=0.6, diffusion=0.1, error=error)
    field = torch.empty(1, 3, *SIZE).uniform_(0.2, 0.8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    direction = torch.zeros_like(field)
    direction[:, component, 1:4, 1:5, 1:6] = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))

    loss(field, labels).backward()

    with torch.no_grad():  # no voxel is reached or left by a step
        slope = (loss(field + 0.1 * direction, labels) - loss(field - 0.1 * direction, labels)) / 0.2
    torch.testing.assert_close((field.grad * direction).sum(), slope, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_fields_give_a_float32_loss_of_the_same_value(dtype):
    labels = target(box(5, 2, 2, 3), box(5, 1, 3, 2))
    # eighths, exact in either type
    field = torch.randint(-16, 17, (1, 3, *SIZE), generator=torch.Generator().manual_seed(0)) / 8
    loss = WarpedLabelLoss((0, 5), dice=0.5, diffusion=0.3)
    half = field.to(dtype).requires_grad_()

    found = loss(half, labels)
    found.backward()

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(field, labels), rtol=1e-6, atol=0)
    assert half.grad.dtype == dtype
    assert half.grad.abs().max() > 0


@pytest.mark.parametrize("convert", [torch.Tensor.float, torch.Tensor.byte, lambda label: MetaTensor(label.float())])
def test_label_maps_may_be_of_any_type(convert):
    labels, field = target(box(5, 2, 2, 3), box(5, 1, 3, 2)), shifted(0.5, 0.25, -0.5)
    loss = WarpedLabelLoss((0, 5), dice=0.5)

    found = loss(field, convert(labels))

    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, loss(field, labels))


def test_a_value_that_is_no_class_is_named():
    labels = target(box(5, 0, 0, 0), box(5, 0, 0, 0)).float()
    labels[0, 1, 2, 2, 2] = 0.5

    with pytest.raises(ValueError, match=r"holds the classes \[0.5\], the loss knows \[0, 5\]"):
        WarpedLabelLoss((0, 5))(shifted(0, 0, 0), labels)


def test_a_class_the_loss_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"holds the classes \[5\], the loss knows \[0, 4\]"):
        WarpedLabelLoss((0, 4))(shifted(0, 0, 0), target(box(5, 0, 0, 0), box(4, 0, 0, 0)))


@pytest.mark.parametrize(
    ("field", "labels"),
    [
        ((1, 3, *SIZE), (1, 1, *SIZE)),
        ((1, 2, *SIZE), (1, 2, *SIZE)),
        ((2, 3, *SIZE), (1, 2, *SIZE)),
        ((1, 3, *SIZE), (1, 2, *SIZE[::-1])),
    ],
)
def test_shapes_that_do_not_fit_are_refused(field, labels):
    with pytest.raises(ValueError, match=r"ddf \(B, 3, I, J, K\) and label maps \(B, 2, I, J, K\)"):
        WarpedLabelLoss((0, 5))(torch.zeros(field), torch.zeros(labels, dtype=torch.int32))
