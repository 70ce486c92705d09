# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.losses import SegmentationGuidedLoss, WarpedLabelLoss
from monai_reg_ext.networks.layers import SegmentedRegistration

SIZE, CELLS, SPACING = (9, 8, 6), (3, 4, 2), (4, 2, 3)
LABELS = (0, 2, 5)


def drawn():
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor(LABELS)[torch.randint(3, (2, 2, *SIZE), generator=generator)]
    logits = torch.randn(2, 2, 3, *CELLS, generator=generator)
    return SegmentedRegistration(torch.randn(2, 3, *SIZE, generator=generator), logits, SPACING), target


def test_it_is_the_loss_and_that_of_shares_in_cells():
    pred, target = drawn()
    registration = WarpedLabelLoss(LABELS)

    found = SegmentationGuidedLoss(registration, LABELS, weight=0.3)(pred, target)

    probabilities = pred.classes.softmax(2)
    entropy, dice = [], []
    for item in range(2):
        for side in range(2):
            share = torch.zeros(3, *CELLS)
            for cell in torch.cartesian_prod(*(torch.arange(cells) for cells in CELLS)):
                box = [slice(step * int(at), step * (int(at) + 1)) for at, step in zip(cell, SPACING, strict=True)]
                voxels = target[(item, side, *box)]
                for number, label in enumerate(LABELS):
                    share[(number, *cell)] = (voxels == label).float().mean()
            guess = probabilities[item, side]
            entropy.append(-(share * guess.log()).sum(0).mean())
            both, total = (guess * share).sum((1, 2, 3)), (guess + share).sum((1, 2, 3))
            dice.append((1 - 2 * both / total)[1:].mean())
    segmentation = torch.stack(entropy).mean() + torch.stack(dice).mean()
    torch.testing.assert_close(
        found, registration(pred.registration, target) + 0.3 * segmentation, atol=1e-5, rtol=1e-5
    )


def test_a_registration_alone_is_refused():
    pred, target = drawn()

    with pytest.raises(TypeError, match="SegmentationTraining"):
        SegmentationGuidedLoss(WarpedLabelLoss(LABELS), LABELS)(pred.registration, target)


def test_label_maps_of_another_size_are_refused():
    pred, target = drawn()

    with pytest.raises(ValueError, match="images that were segmented"):
        SegmentationGuidedLoss(WarpedLabelLoss(LABELS), LABELS)(pred, target[..., :3])
