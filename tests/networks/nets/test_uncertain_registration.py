# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.adam_refiner import AdamRefiner
from monai_reg_ext.networks.blocks.coupled_convex_estimator import CoupledConvexEstimator
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.symmetric_matrix import matrices_of
from monai_reg_ext.networks.layers.upsample_covariance import upsample_covariance
from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.networks.nets.registration_net import RegistrationNet

SIZE = (34, 30, 41)
DIAGONAL = [0, 3, 5]


def convex_adam(iterations=5, spacing=3, **settings):
    refiner = AdamRefiner(2, iterations) if iterations else None
    return RegistrationNet(MindSSC(), CoupledConvexEstimator(spacing, 2), refiner, **settings)


class Stage(torch.nn.Module):
    """An estimator of its own that says how sure it is, or not."""

    def spacing(self, size):
        return (3, 2, 4)

    def forward(self, fixed, moving, fixed_mask=None, moving_mask=None):
        return torch.zeros(len(fixed), 3, *fixed.shape[2:])


class UncertainStage(Stage):
    def covariance(self, fixed, moving, refined, fixed_mask=None, moving_mask=None):
        self.given = fixed, moving, refined, fixed_mask, moving_mask
        return torch.arange(6.0).view(1, 6, 1, 1, 1).expand(len(fixed), 6, *fixed.shape[2:])


@pytest.fixture(scope="module")
def pair(shifted_pair, smooth_field):
    """Moving and fixed image, a shift and a smooth deformation apart."""
    moving, fixed = shifted_pair(SIZE, (4, -3, 2))
    return warp(moving, smooth_field(SIZE, 2.0)), fixed


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_covariance_stands_behind_the_field_or_fields(pair, symmetric, passes):
    moving, fixed = pair
    image = torch.cat([moving, fixed], 1)

    output = convex_adam(symmetric=symmetric, passes=passes, uncertainty=True)(image)

    certain = convex_adam(symmetric=symmetric, passes=passes)
    fields = certain(image)
    assert output.shape == (1, fields.shape[1] + 6, *SIZE)
    assert torch.equal(output[:, :-6], fields)
    assert torch.equal(output[:, -6:], certain.covariance(moving, fixed, fields[:, :3]))


@pytest.mark.parametrize("iterations", [0, 5])
def test_the_estimator_looks_once_more_at_the_registered_pair(pair, iterations):
    moving, fixed = pair
    net = convex_adam(iterations)
    ddf = net.register(moving, fixed)

    covariance = net.covariance(moving, fixed, ddf)

    features = [pool_to_grid(MindSSC()(image), (3, 3, 3)) for image in (fixed, warp(moving, ddf))]
    coarse = CoupledConvexEstimator(3, 2).covariance(*features, refined=iterations > 0)
    torch.testing.assert_close(covariance, upsample_covariance(coarse, (3, 3, 3), SIZE), rtol=1e-3, atol=1e-4)


def test_the_second_look_may_compare_other_features_of_the_images_without_preparation(pair):
    moving, fixed = pair
    settings = {"estimator": CoupledConvexEstimator(3, 2), "refiner": AdamRefiner(2, 3)}
    net = RegistrationNet(
        torch.nn.Identity(), **settings, preparation=torch.nn.ReLU(), uncertainty=True, uncertainty_features=MindSSC()
    )

    output = net(torch.cat([moving, fixed], 1))

    expected = RegistrationNet(MindSSC(), **settings).covariance(moving, fixed, output[:, :3])
    assert torch.equal(output[:, 3:], expected)


def test_any_estimator_with_a_covariance_serves_and_gets_the_masks(pair):
    moving, fixed = pair
    masks = torch.ones(2, 1, 1, *SIZE)
    masks[0, :, :, :9] = masks[1, ..., 30:] = 0
    estimator = UncertainStage()

    output = RegistrationNet(torch.nn.Identity(), estimator, uncertainty=True)(torch.cat(pair, 1), *masks)

    of_fixed, of_moving, refined, fixed_mask, moving_mask = estimator.given
    assert refined is False
    for given, expected in ((of_fixed, fixed), (of_moving, moving), (fixed_mask, masks[1]), (moving_mask, masks[0])):
        torch.testing.assert_close(given, pool_to_grid(expected, (3, 2, 4)))
    # cells of 3, 2 and 4 voxels
    voxels = torch.tensor([0.0, 1 * 6, 2 * 12, 3 * 4, 4 * 8, 5 * 16]).view(1, 6, 1, 1, 1)
    torch.testing.assert_close(output[:, 3:], voxels.expand(1, 6, *SIZE))


def test_the_moving_mask_is_warped_like_the_image(pair):
    moving, fixed = pair
    mask, ddf = torch.zeros(1, 1, *SIZE), torch.zeros(1, 3, *SIZE)
    mask[..., 4:20], ddf[:, 2] = 1, 3.0
    estimator = UncertainStage()

    RegistrationNet(torch.nn.Identity(), estimator).covariance(moving, fixed, ddf, moving_mask=mask)

    expected = torch.zeros(1, 1, *SIZE)
    expected[..., 1:17] = 1
    torch.testing.assert_close(estimator.given[4], pool_to_grid(expected, (3, 2, 4)))
    torch.testing.assert_close(estimator.given[1][..., :9], pool_to_grid(moving.roll(-3, 4), (3, 2, 4))[..., :9])


def test_errors_that_are_left_show_in_the_covariance(pair):
    moving, fixed = pair
    net = convex_adam(40)
    found = net.register(moving, fixed)

    good, bad = (net.covariance(moving, fixed, ddf)[:, DIAGONAL].sum(1).mean() for ddf in (found, found * 0))

    assert bad > 1.3 * good


def test_the_covariance_of_flipped_images_is_flipped(shifted_pair):
    size = (24, 30, 36)  # whole cells, so that the flipped grid is the grid
    moving, fixed = shifted_pair(size, (3, -3, 0))
    noisy = moving + 0.3 * torch.randn_like(moving)
    ddf = torch.tensor([3.0, -3.0, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, *size)
    flipped_ddf = ddf.clone()
    flipped_ddf[:, 0] *= -1
    net = convex_adam(0)

    covariance = net.covariance(noisy, fixed, ddf)
    flipped_back = net.covariance(noisy.flip(2), fixed.flip(2), flipped_ddf).flip(2)

    flipped_back[:, [1, 2]] *= -1
    torch.testing.assert_close(flipped_back, covariance, rtol=1e-2, atol=1e-3)
    assert covariance[:, [1, 2]].abs().max() > 0.01


def test_pairs_of_a_batch_do_not_see_each_other(pair):
    moving, fixed = pair
    net = convex_adam(0, uncertainty=True)
    images = torch.cat([moving, fixed], 1), torch.cat([fixed, 2 * moving], 1)

    together = net(torch.cat(images))

    for item, image in enumerate(images):
        torch.testing.assert_close(together[item : item + 1], net(image), rtol=1e-4, atol=1e-4)


def test_voxels_have_covariances(pair):
    output = convex_adam(uncertainty=True)(torch.cat(pair, 1))

    assert torch.linalg.eigvalsh(matrices_of(output[:, 3:]).movedim((1, 2), (-2, -1)).double()).min() > 0


def test_no_gradient_goes_through_the_covariance(pair):
    estimator = UncertainStage()
    estimator.covariance = lambda fixed, moving, refined: fixed[:, :1].expand(-1, 6, -1, -1, -1)
    net = RegistrationNet(torch.nn.Conv3d(1, 2, 1), estimator)

    assert not net.covariance(*pair, torch.zeros(1, 3, *SIZE, requires_grad=True)).requires_grad


def test_without_uncertainty_nothing_is_computed_or_copied(pair, monkeypatch):
    net, field = RegistrationNet(MindSSC(), UncertainStage()), torch.zeros(1, 3, *SIZE)
    monkeypatch.setattr(RegistrationNet, "covariance", lambda *args: pytest.fail("nobody asked"))
    monkeypatch.setattr(net, "register", lambda *args: field)

    assert net(torch.cat(pair, 1)) is field


def test_an_estimator_that_knows_no_covariance_is_refused(pair):
    message = r"Stage knows no uncertainty: it needs a method covariance\(fixed, moving, refined\)\. Set uncertainty to"
    with pytest.raises(TypeError, match=message):
        RegistrationNet(MindSSC(), Stage(), uncertainty=True)

    net = RegistrationNet(MindSSC(), Stage())
    with pytest.raises(TypeError, match=message):
        net.covariance(*pair, torch.zeros(1, 3, *SIZE))
