# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.losses import MindSSCLoss
from monai_reg_ext.networks.blocks import MindSSC
from monai_reg_ext.networks.layers import warp


@pytest.fixture
def images():
    return torch.rand(2, 1, 9, 10, 11), torch.rand(2, 1, 9, 10, 11)


@pytest.mark.parametrize(("reduction", "reduce"), [("mean", torch.mean), ("sum", torch.sum), ("none", lambda x: x)])
def test_the_loss_is_the_squared_distance_of_the_descriptors(images, reduction, reduce):
    pred, target = images
    distance = sum((MindSSC(2, 1)(pred)[:, c] - MindSSC(2, 1)(target)[:, c]) ** 2 for c in range(12))[:, None]

    torch.testing.assert_close(MindSSCLoss(2, 1, reduction)(pred, target), reduce(distance))


def test_an_image_and_its_negative_are_alike(images):
    assert MindSSCLoss()(images[0], -3 * images[0] + 1) < 1e-6
    assert MindSSCLoss()(*images) > 0.1


def test_its_gradient_pulls_a_shifted_image_back():
    axes = [torch.linspace(0, 6, size) for size in (20, 18, 16)]
    fixed = sum(torch.sin(axis) for axis in torch.meshgrid(*axes, indexing="ij"))[None, None]
    shift = torch.zeros(1, 3, 1, 1, 1).requires_grad_()
    moving = warp(fixed, torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, 20, 18, 16))

    MindSSCLoss()(warp(moving, shift.expand(1, 3, 20, 18, 16)), fixed).backward()

    # warp(moving, (-1, 0, 0)) is fixed again, so the first component must fall
    assert shift.grad[0, 0].item() > 0
    assert shift.grad[0, 0].abs() > 3 * shift.grad[0, 1:].abs().max()


def test_different_shapes_are_refused(images):
    with pytest.raises(ValueError, match="one shape"):
        MindSSCLoss()(images[0], images[1][..., 1:])
