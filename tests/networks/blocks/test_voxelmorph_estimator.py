# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks import VoxelMorphEstimator
from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.networks.nets import RegistrationNet

SIZE = (9, 14, 11)


def sides(size=SIZE):
    return torch.rand(2, 1, 1, *size).unbind(0)


def with_backbone(estimator, flow):
    """The estimator with a network that always gives the same flow."""
    estimator.network.backbone = torch.nn.Identity()
    estimator.network.backbone.forward = lambda pair: (
        torch.tensor(flow).view(1, 3, 1, 1, 1).expand(-1, -1, *pair.shape[2:])
    )
    return estimator


def test_at_first_it_hardly_moves_anything():
    with torch.no_grad():
        assert VoxelMorphEstimator()(*sides()).abs().max() < 0.01


@pytest.mark.parametrize("steps", [0, 7])
def test_a_constant_velocity_is_the_displacement(steps):
    flow = (0.5, -0.3, 0.2)

    ddf = with_backbone(VoxelMorphEstimator(integration_steps=steps), flow)(*sides())

    expected = torch.tensor(flow).view(1, 3, 1, 1, 1).expand(1, 3, 5, 10, 7)
    torch.testing.assert_close(ddf[..., 2:7, 2:12, 2:9], expected, rtol=0, atol=1e-3)


def test_any_grid_is_continued_to_one_that_can_be_halved():
    estimator, seen = VoxelMorphEstimator(), []
    estimator.network.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2:]))

    with torch.no_grad():
        found = estimator(*sides())

    assert found.shape == (1, 3, *SIZE)
    assert tuple(seen[0]) == (16, 16, 16)


def test_it_sees_moving_before_fixed_and_zeros_outside_their_masks():
    estimator, (fixed, moving), seen = VoxelMorphEstimator(), sides((8, 16, 8)), []
    estimator.network.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    masks = (torch.rand(2, 1, 1, 8, 16, 8) > 0.5).float().unbind(0)

    with torch.no_grad():
        estimator(fixed, moving, *masks)

    assert torch.equal(seen[0], torch.cat([moving * masks[1], fixed * masks[0]], 1))


def test_it_learns_in_the_skeleton_to_bring_a_pair_together(texture):
    size = (16, 24, 16)
    fixed = texture(size, 3.0)
    moving = warp(fixed, torch.tensor([0.0, 1.5, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, *size))
    net = RegistrationNet(torch.nn.Identity(), VoxelMorphEstimator(integration_steps=2))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    losses = []
    for _ in range(15):
        loss = (warp(moving, net(torch.cat([moving, fixed], 1))) - fixed).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.8 * losses[0]
