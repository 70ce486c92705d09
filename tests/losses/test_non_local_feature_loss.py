# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.losses import NonLocalFeatureLoss
from monai_reg_ext.networks.blocks import MindSSC
from monai_reg_ext.networks.layers import DisplacementDistribution, sample, search_grid

SIZE = (14, 12, 11)
GRID = search_grid(SIZE, (3, 2, 4), (3, 5, 2), (2.0, 1.5, 3.0), torch.zeros(1))


def distribution() -> DisplacementDistribution:
    logits = 3 * torch.rand(1, 30, 24)
    return DisplacementDistribution(logits.softmax(1).view(1, *GRID.window, *GRID.size), GRID)


def test_it_is_the_error_of_expected_features():
    pred, images = distribution(), torch.rand(1, 2, *SIZE)

    found = NonLocalFeatureLoss(MindSSC(1, 2))(pred, images)

    moving, fixed = (MindSSC(1, 2)(image) for image in images.split(1, 1))
    points = torch.stack(torch.meshgrid(*GRID.points, indexing="ij"))[None]
    seen = torch.stack([sample(moving, points + d.view(3, 1, 1, 1)) for d in GRID.displacements], 1)
    expected = (pred.probabilities.flatten(1, 3)[:, :, None] * seen).sum(1)
    torch.testing.assert_close(found, (expected - sample(fixed, points)).square().mean(), atol=1e-6, rtol=1e-4)


def test_probabilities_learn_and_features_do_not():
    features = torch.nn.Conv3d(1, 3, 3, padding=1)
    pred = distribution()
    pred = pred._replace(probabilities=pred.probabilities.requires_grad_())

    NonLocalFeatureLoss(features)(pred, torch.rand(1, 2, *SIZE)).backward()

    assert pred.probabilities.grad.abs().max() > 0
    assert features.weight.grad is None


def test_equal_images_that_stay_cost_nothing():
    image = torch.rand(1, 1, *SIZE)
    grid = search_grid(SIZE, GRID.size, (3, 5, 3), (2.0, 1.5, 3.0), image)
    certain = torch.zeros(1, *grid.window, *grid.size)
    certain[:, 1, 2, 1] = 1

    loss = NonLocalFeatureLoss(diffusion_weight=0.5)(
        DisplacementDistribution(certain, grid), image.expand(-1, 2, -1, -1, -1)
    )

    assert loss < 1e-10


def test_the_diffusion_is_added():
    pred, images = distribution(), torch.rand(1, 2, *SIZE)

    plain, rough = (NonLocalFeatureLoss(MindSSC(1, 2), weight)(pred, images) for weight in (0.0, 0.7))

    field = pred.mean() / torch.tensor([2.0, 0.75, 6.0]).view(3, 1, 1, 1)
    expected = 0.7 * sum(field.diff(dim=dim).square().mean() for dim in (2, 3, 4))
    torch.testing.assert_close(rough - plain, expected, atol=1e-6, rtol=1e-4)
