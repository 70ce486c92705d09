# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot

from monai_reg_ext.losses import NonLocalLabelLoss
from monai_reg_ext.networks.layers import DisplacementDistribution, PlanarDistribution, sample, search_grid

SIZE = (12, 10, 9)
GRID = search_grid(SIZE, (3, 2, 4), (3, 5, 2), (2.0, 1.5, 3.0), torch.zeros(1))


def distribution(dtype: torch.dtype = torch.float32) -> DisplacementDistribution:
    logits = 3 * torch.rand(2, 30, 24, dtype=dtype)
    return DisplacementDistribution(logits.softmax(1).view(2, *GRID.window, *GRID.size), GRID)


def label_maps(classes: int = 4) -> torch.Tensor:
    return torch.randint(classes, (2, 2, *SIZE)).float()


def laid_out(pred: DisplacementDistribution, target: torch.Tensor, background: float | None, exponent: float):
    """The formula with labels of all displacements at once, and the weights one after the other."""
    points = torch.stack(torch.meshgrid(*GRID.points, indexing="ij"))[None]
    losses = []
    for item, pair in zip(pred.probabilities, target, strict=True):
        moving, fixed = (one_hot(label.long(), 4).movedim(-1, 0)[None].float() for label in pair)
        seen = torch.stack([sample(moving, points + d.view(3, 1, 1, 1))[0] for d in GRID.displacements])
        expected = (item.flatten(0, 2)[:, None] * seen).sum(0)
        weights = [((moving + fixed)[0, label].sum() ** -exponent) for label in range(4)]
        weights = [4 * weight / sum(weights) for weight in weights]
        weights[0] = weights[0] if background is None else background
        errors = (expected - sample(fixed, points)[0]).square().mean((1, 2, 3))
        losses.append(sum(weight * error for weight, error in zip(weights, errors, strict=True)) / 4)
    return sum(losses) / 2


@pytest.mark.parametrize("background", [0.15, None])
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_it_is_the_weighted_error_of_expected_labels(background, exponent):
    pred, target = distribution(), label_maps()

    found = NonLocalLabelLoss(range(4), exponent, background)(pred, target)

    torch.testing.assert_close(found, laid_out(pred, target, background, exponent), atol=1e-6, rtol=1e-4)


def test_its_gradient_is_that_of_the_laid_out_form():
    pred, target = distribution(), label_maps()
    pred = pred._replace(probabilities=pred.probabilities.requires_grad_())
    losses = NonLocalLabelLoss(range(4))(pred, target), laid_out(pred, target, 0.15, 0.5)

    found, expected = (torch.autograd.grad(loss, pred.probabilities)[0] for loss in losses)

    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)


def test_its_gradient_is_right():
    double = torch.float64
    grid = search_grid((4, 5, 3), (2, 3, 1), (2, 1, 3), (1.5, 0, 1.0), torch.zeros(1, dtype=double))
    target = torch.randint(3, (1, 2, 4, 5, 3)).to(double)
    probabilities = torch.rand(1, *grid.window, *grid.size, dtype=double, requires_grad=True)
    loss = NonLocalLabelLoss(range(3), diffusion_weight=0.3)

    assert torch.autograd.gradcheck(
        lambda weights: loss(DisplacementDistribution(weights, grid), target), probabilities
    )


def test_labels_of_all_displacements_never_exist_at_once(largest_tensor):
    pred, target = distribution(), label_maps(8)
    pred = pred._replace(probabilities=pred.probabilities.requires_grad_())

    with largest_tensor() as largest:
        NonLocalLabelLoss(range(8))(pred, target).backward()

    # 8 channels of the images; of the displacements there would be 2 x 8 x 30 x 24
    assert largest.values <= 2 * 8 * 12 * 10 * 9
    assert 2 * 8 * 12 * 10 * 9 < 2 * 8 * 30 * 24 * 3


def test_the_right_displacement_costs_nothing():
    moving = label_maps()[:1, :1]
    fixed = moving.roll((-2, 0, 3), (2, 3, 4))
    grid = search_grid(SIZE, SIZE, (3, 1, 3), (2.0, 0.0, 3.0), moving)
    certain = torch.zeros(1, *grid.window, *grid.size)
    certain[:, 2, 0, 0] = 1
    target = torch.cat([moving, fixed], 1)
    # where it stays inside
    inner = search_grid(SIZE, (1, 1, 1), (3, 1, 3), (2.0, 0.0, 3.0), moving)._replace(
        points=(torch.tensor([3.0, 5.0]), torch.tensor([4.0]), torch.tensor([4.0, 6.0]))
    )

    loss = NonLocalLabelLoss(range(4))(DisplacementDistribution(certain[..., :2, :1, :2], inner), target)

    assert loss < 1e-10


def test_the_diffusion_of_the_expected_displacements_counts_in_steps():
    pred, target = distribution(), label_maps()

    plain, rough = (NonLocalLabelLoss(range(4), diffusion_weight=weight)(pred, target) for weight in (0.0, 0.7))

    steps = torch.tensor([2.0, 0.75, 6.0]).view(3, 1, 1, 1)
    field = pred.mean() / steps
    expected = sum(field.diff(dim=dim).square().mean() for dim in (2, 3, 4))
    torch.testing.assert_close(rough - plain, 0.7 * expected, atol=1e-6, rtol=1e-4)


def test_of_planes_it_takes_the_mean_of_what_they_see():
    pred, target = distribution(), label_maps()

    planes = PlanarDistribution((pred, pred, pred))

    loss = NonLocalLabelLoss(range(4))
    torch.testing.assert_close(loss(planes, target), loss(pred, target))


def test_half_precision_probabilities_are_counted_in_float32():
    pred, target = distribution(), label_maps()
    half = pred._replace(probabilities=pred.probabilities.half())

    found = NonLocalLabelLoss(range(4))(half, target)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, NonLocalLabelLoss(range(4))(pred, target), atol=1e-4, rtol=1e-3)


def test_more_classes_than_weights_are_refused():
    target = label_maps()
    target[0, 0, 0, 0, 0] = 7

    with pytest.raises(ValueError, match=r"holds the classes \[7.0\], the loss knows \[0, 1, 2, 3\]"):
        NonLocalLabelLoss(range(4))(distribution(), target)


def test_a_field_is_refused():
    with pytest.raises(ValueError, match="probabilistic_training=True"):
        NonLocalLabelLoss(range(4))(torch.zeros(2, 3, *SIZE), label_maps())


def test_one_label_map_alone_is_refused():
    with pytest.raises(ValueError, match="label maps \\(B, 2, I, J, K\\)"):
        NonLocalLabelLoss(range(4))(distribution(), label_maps()[:, :1])
