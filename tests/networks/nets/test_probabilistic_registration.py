# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser

from monai_reg_ext.losses import NonLocalLabelLoss
from monai_reg_ext.networks.blocks import (
    AdamRefiner,
    CoupledConvexEstimator,
    FlowNetEstimator,
    MeanField,
    MeanFieldEstimator,
    MindSSC,
    ObeliskFeatures,
    PlanarMeanFieldEstimator,
    ProbabilityRefiner,
)
from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.sample_axes import sample_axes
from monai_reg_ext.networks.layers.upsample_ddf import upsample_ddf
from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.networks.nets.registration_net import RegistrationNet

SIZE = (37, 40, 44)
SPACING = (3, 2, 4)
WINDOW = {"grid_spacing": SPACING, "points": (8, 9, 7), "labels": (7, 5, 9), "reach": (6, 6, 12)}


@pytest.fixture(scope="module")
def pair(shifted_pair):
    """Moving and fixed image side by side, a shift apart."""
    return torch.cat(shifted_pair(SIZE, (4, -3, 4)), 1)


def mean_field_net(refiner=None, sharpness=60.0, **settings):
    return RegistrationNet(MindSSC(), MeanFieldEstimator(MeanField(sharpness), **WINDOW), refiner, **settings)


def test_a_shift_is_found_in_voxels(pair, interior):
    ddf = mean_field_net(ProbabilityRefiner())(pair)

    assert ddf.shape == (1, 3, *SIZE)
    error = interior(ddf, 12) - torch.tensor([4.0, -3, 4]).view(1, 3, 1, 1, 1)
    assert error.abs().mean() < 0.5


def test_the_recipe_is_three_parts_of_json(pair):
    blocks = "monai_reg_ext.networks.blocks."
    recipe = {
        "_target_": "monai_reg_ext.networks.nets.RegistrationNet",
        "features": {"_target_": blocks + "ObeliskFeatures", "channels": 4, "pool": 1},
        "estimator": {"_target_": blocks + "MeanFieldEstimator", **WINDOW},
        "refiner": {"_target_": blocks + "ProbabilityRefiner", "iterations": 3},
    }

    net = ConfigParser({"net": recipe}).get_parsed_content("net").eval()

    with torch.inference_mode():
        assert net(pair).shape == (1, 3, *SIZE)


class Remembering(torch.nn.Module):
    """A refiner that changes nothing and remembers what it was given."""

    def forward(self, fixed, moving, coarse_ddf, distribution):
        self.given = fixed, moving, coarse_ddf, distribution
        return coarse_ddf


def test_the_refiner_on_probabilities_sees_what_the_estimator_has_found(pair):
    estimator, refiner = MeanFieldEstimator(MeanField(60.0), **WINDOW), Remembering()

    ddf = RegistrationNet(MindSSC(), estimator, refiner)(pair)

    moving, fixed = (MindSSC().pooled(image, [SPACING])[0] for image in pair.chunk(2, 1))
    expected = fixed, moving, estimator(fixed, moving), estimator.distribution(fixed, moving)
    torch.testing.assert_close(refiner.given, expected)
    torch.testing.assert_close(ddf, upsample_ddf(expected[2], SPACING, SIZE))


def test_other_refiners_may_follow(pair):
    first, second = ProbabilityRefiner(5), AdamRefiner(2, iterations=3)

    both = mean_field_net([first, second])(pair)
    alone = mean_field_net([first])(pair)

    assert both.shape == alone.shape
    assert not torch.allclose(both, alone)


def test_it_works_in_both_directions_at_once(pair):
    moving, fixed = pair.chunk(2, 1)
    net = mean_field_net(ProbabilityRefiner(5), symmetric=True)

    forward, backward = net.register_both(moving, fixed)
    swapped = net.register_both(fixed, moving)

    torch.testing.assert_close(forward, swapped[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backward, swapped[0], atol=1e-4, rtol=1e-4)


def test_masks_reach_the_probabilities(pair):
    inside = torch.ones(1, 1, *SIZE)
    inside[..., 25:, :, :] = 0
    net = mean_field_net(ProbabilityRefiner(5))

    masked = net(pair, inside, inside)

    assert not torch.allclose(masked, net(pair), atol=1e-2)


def test_the_distribution_counts_in_voxels(pair):
    moving, fixed = pair.chunk(2, 1)
    estimator = MeanFieldEstimator(MeanField(60.0), **WINDOW)

    in_voxels = RegistrationNet(MindSSC(), estimator).distribution(moving, fixed)

    in_cells = estimator.distribution(*(MindSSC().pooled(image, [SPACING])[0] for image in (fixed, moving)))
    for axis in range(3):
        step = SPACING[axis]
        centres = in_cells.grid.points[axis] * step + (step - 1) / 2
        torch.testing.assert_close(in_voxels.grid.points[axis], centres)
        torch.testing.assert_close(in_voxels.grid.labels[axis], in_cells.grid.labels[axis] * step)
    assert [axis[-1].item() for axis in in_voxels.grid.labels] == pytest.approx([6, 6, 12])
    torch.testing.assert_close(in_voxels.probabilities, in_cells.probabilities)


def test_moving_labels_at_the_expected_places_are_the_fixed_ones(pair):
    moving, fixed = pair.chunk(2, 1)

    distribution = mean_field_net(sharpness=400.0).distribution(moving, fixed)

    seen = distribution.seen((moving > 0).float())
    before, wanted = (sample_axes((image > 0).float(), distribution.grid.points) for image in (moving, fixed))
    assert (seen - wanted).abs().mean() < 0.6 * (before - wanted).abs().mean()


@pytest.mark.parametrize("planar", [False, True])
def test_in_training_it_gives_the_distribution_and_else_the_field(pair, planar):
    kind = PlanarMeanFieldEstimator if planar else MeanFieldEstimator
    net = RegistrationNet(MindSSC(), kind(**WINDOW), probabilistic_training=True)

    assert net.eval()(pair).shape == (1, 3, *SIZE)
    assert net.train()(pair).mean().shape == (1, 3, 8, 9, 7)
    assert RegistrationNet(MindSSC(), kind(**WINDOW)).train()(pair).shape == (1, 3, *SIZE)


@pytest.mark.parametrize("planar", [False, True])
def test_features_and_mean_field_learn_from_labels(pair, planar):
    kind = PlanarMeanFieldEstimator if planar else MeanFieldEstimator
    features = ObeliskFeatures(3, pool=1)
    net = RegistrationNet(features, kind(**WINDOW), ProbabilityRefiner(), probabilistic_training=True).train()
    target = (pair > 0).float() + (pair > 0.8)

    def loss():
        return NonLocalLabelLoss(range(3), diffusion_weight=0.01)(net(pair), target)

    loss().backward()
    assert all(weight.grad.abs().max() > 0 for weight in net.parameters())

    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    before = loss().item()
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before


def test_each_pass_may_have_a_window_of_its_own(pair):
    field = MeanField(60.0)
    wide = MeanFieldEstimator(field, **WINDOW)
    narrow = MeanFieldEstimator(field, grid_spacing=2, points=(10, 11, 12), labels=5, reach=3)
    refiner = ProbabilityRefiner(5)

    twice = RegistrationNet(MindSSC(), [wide, narrow], refiner)(pair)

    moving, fixed = pair.chunk(2, 1)
    first = RegistrationNet(MindSSC(), wide, refiner).register(moving, fixed)
    second = RegistrationNet(MindSSC(), narrow, refiner).register(warp(moving, first), fixed)
    torch.testing.assert_close(twice, compose_ddf(first, second), atol=1e-4, rtol=1e-4)


def test_one_estimator_for_all_passes_has_its_weights_once():
    assert list(mean_field_net(passes=3).state_dict()) == list(mean_field_net().state_dict())


@pytest.mark.parametrize(("count", "passes"), [(2, 3), (2, 1), (0, None)])
def test_as_many_estimators_as_passes_are_needed(count, passes):
    with pytest.raises(ValueError, match="one estimator for each pass"):
        RegistrationNet(MindSSC(), [MeanFieldEstimator(**WINDOW) for _ in range(count)], passes=passes)


def test_the_uncertainty_is_asked_of_the_last_estimator(pair):
    wide = MeanFieldEstimator(MeanField(60.0), **WINDOW)
    narrow = MeanFieldEstimator(MeanField(60.0), grid_spacing=2, points=(10, 11, 12), labels=5, reach=3)

    output = RegistrationNet(MindSSC(), [wide, narrow], uncertainty=True)(pair)

    assert output.shape == (1, 9, *SIZE)
    # within 3 voxels the variance is 9 at most
    assert output[:, [3, 6, 8]].max() <= 9


def test_a_refiner_on_probabilities_needs_an_estimator_that_knows_some(pair):
    for estimator in (CoupledConvexEstimator(3, 2), FlowNetEstimator(**WINDOW, hidden=(4, 4, 4, 4))):
        with pytest.raises(TypeError, match="knows no probabilities"):
            RegistrationNet(MindSSC(), estimator, ProbabilityRefiner())
        with pytest.raises(TypeError, match="knows no probabilities"):
            RegistrationNet(MindSSC(), estimator, probabilistic_training=True)
        with pytest.raises(TypeError, match="knows no probabilities"):
            RegistrationNet(MindSSC(), estimator).distribution(*pair.chunk(2, 1))


def test_the_baseline_registers_with_the_same_features(pair):
    net = RegistrationNet(
        ObeliskFeatures(3, pool=1), FlowNetEstimator(**WINDOW, hidden=(4, 4, 4, 4)), AdamRefiner(2, 2)
    )

    assert net.eval()(pair).shape == (1, 3, *SIZE)
