# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_reg_ext.losses import NonLocalFeatureLoss
from monai_reg_ext.networks.blocks import AdamRefiner, MindSSC, VoxelMorphPlusPlusEstimator
from monai_reg_ext.networks.layers.points_in_mask import points_in_mask
from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.networks.layers.thin_plate_spline import thin_plate_field
from monai_reg_ext.networks.nets import RegistrationNet

SIZE = (18, 7, 10)


class Constant(torch.nn.Module):
    """Logits whatever the features."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, features):
        return self.logits.expand(len(features), -1, -1, -1)


def small(**settings):
    return VoxelMorphPlusPlusEstimator(points=30, labels=5, **settings).eval()


def sides(channels=1):
    return torch.rand(2, 1, channels, *SIZE).unbind(0)


def test_it_has_as_many_weights_as_published():
    assert sum(weight.numel() for weight in VoxelMorphPlusPlusEstimator().parameters()) == 1_364_305


def test_even_logits_expect_no_displacement():
    estimator = small()
    estimator.head = Constant(torch.zeros(5, 5, 5))

    with torch.no_grad():
        torch.testing.assert_close(estimator(*sides()), torch.zeros(1, 3, *SIZE), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reach"),
    [({"fraction": 0.3}, (2.7, 1.05, 1.5)), ({"reach": (6.0, 2.0, 4.0), "grid_spacing": (3, 2, 1)}, (2.0, 1.0, 4.0))],
)
def test_a_certain_bin_is_expected_everywhere(settings, reach):
    estimator = small(**settings)
    logits = torch.zeros(5, 5, 5)
    logits[4, 0, 3] = 100.0
    estimator.head = Constant(logits)

    with torch.no_grad():
        field = estimator(*sides())

    # bins lie at -4/5, -2/5, 0, 2/5, 4/5 of the reach
    expected = torch.tensor([0.8 * reach[0], -0.8 * reach[1], 0.4 * reach[2]]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(field, expected.expand_as(field), rtol=1e-3, atol=1e-4)


def test_the_published_bins_reach_three_elevenths_of_half_the_image():
    fixed = torch.zeros(1, 1, 20, 4, 4)
    displacements = VoxelMorphPlusPlusEstimator()._displacements(fixed)

    assert displacements.shape == (1331, 3)
    assert displacements[:, 0].max().item() == pytest.approx(0.3 * 10 / 11 * 10)


def test_the_head_sees_the_features_at_the_point():
    estimator = small()
    # features that say where they are: cell n of the coarser grid lies between cells 2n and 2n + 1
    places = torch.stack(torch.meshgrid(*[torch.arange(-(-n // 2)) * 2 + 0.5 for n in SIZE], indexing="ij"))[None]
    estimator.network = torch.nn.Identity()
    estimator.network.forward = lambda volume: places.float()
    seen = []
    estimator.head = Constant(torch.zeros(5, 5, 5))
    estimator.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    points = 1 + torch.rand(1, 9, 3) * torch.tensor([14.0, 4.0, 7.0])

    estimator.at_points(*sides(), points)

    torch.testing.assert_close(torch.cat(seen), points[0], rtol=1e-4, atol=1e-4)


def test_the_field_goes_smoothly_through_what_its_points_expect(smooth_field):
    estimator, (fixed, moving) = small(stride=1), sides()
    mask = torch.zeros_like(fixed)
    mask[..., 2:16, 1:6, 2:9] = 1
    points = points_in_mask(mask > 0, 30)

    with torch.no_grad():
        found = estimator(fixed, moving, mask, mask)
        expected = estimator.at_points(fixed, moving, points, mask, mask).mean()

    field = thin_plate_field(points, expected, SIZE, smoothing=30e-4, spacing=1, kernel="linear")
    torch.testing.assert_close(found, field, rtol=1e-4, atol=1e-4)
    left = sample_points(found, points) - expected
    assert left.abs().mean() < 0.5 * expected.abs().mean() + 1e-3


def test_what_lies_outside_the_masks_does_not_matter():
    estimator, (fixed, moving) = small(), sides()
    mask = torch.ones_like(fixed)
    mask[..., 6:] = 0
    spoiled = [torch.where(mask > 0, side, 9.0) for side in (fixed, moving)]

    with torch.no_grad():
        torch.testing.assert_close(estimator(*spoiled, mask, mask), estimator(fixed, moving, mask, mask))


def test_probabilities_at_given_points_learn_from_both_losses():
    estimator, (fixed, moving) = small(channels=2).train(), sides(2)
    points = 1 + torch.rand(1, 8, 3) * torch.tensor([14.0, 4.0, 7.0])

    pred = estimator.at_points(fixed, moving, points)
    images = torch.cat([moving[:, :1], fixed[:, :1]], 1)
    for loss in (F.mse_loss(pred.mean(), torch.ones(1, 8, 3)), NonLocalFeatureLoss(torch.nn.Identity())(pred, images)):
        loss.backward(retain_graph=True)
        for module in (estimator.network.encoder[0], estimator.head):
            assert all(torch.isfinite(weight.grad).all() for weight in module.parameters())
            assert any(weight.grad.norm() > 0 for weight in module.parameters())
        estimator.zero_grad()


def test_it_is_an_estimator_of_the_skeleton_with_adam_on_other_features_behind(texture):
    size = (36, 13, 19)
    image = torch.cat([texture(size), texture(size, seed=1)], 1)
    masks = torch.ones(1, 1, *size), torch.ones(1, 1, *size)

    alone = RegistrationNet(torch.nn.Identity(), small())(image, *masks)
    with torch.no_grad():
        refined = RegistrationNet(MindSSC(), small(channels=12), AdamRefiner(2, 2))(image)

    assert alone.shape == refined.shape == (1, 3, *size)
    alone.square().sum().backward()
