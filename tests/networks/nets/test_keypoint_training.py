# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks import (
    GaussNewtonEstimator,
    Learn2OptimiseEstimator,
    VoxelMorphEstimator,
    VoxelMorphPlusPlusEstimator,
)
from monai_reg_ext.networks.layers.keypoint_distribution import KeypointDistribution
from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.networks.nets import KeypointTraining, RegistrationNet

SIZE = (36, 13, 22)


class Ramp(torch.nn.Module):
    """Iterative stage whose fields are linear in space, and in the field from which it starts."""

    def __init__(self, spacing):
        super().__init__()
        self.grid_spacing = spacing
        self.weight = torch.nn.Parameter(torch.ones(()))

    def spacing(self, size):
        return self.grid_spacing

    def fields(self, fixed, moving, coarse_ddf=None, fixed_mask=None, moving_mask=None):
        places = torch.meshgrid(*[torch.arange(float(n)) for n in fixed.shape[2:]], indexing="ij")
        ramp = torch.stack([0.1 * places[0], 0.2 * places[2], 0.3 * places[1]])[None]
        start = torch.zeros_like(ramp) if coarse_ddf is None else coarse_ddf
        yield start
        for number in (1, 2, 3):
            yield start + self.weight * number * ramp

    def forward(self, *given, **masks):
        *_, last = self.fields(*given, **masks)
        return last


class Shift(torch.nn.Module):
    """Estimator of a constant field in voxels, whose weight must not learn."""

    def __init__(self, spacing, voxels):
        super().__init__()
        self.grid_spacing = spacing
        self.voxels = torch.nn.Parameter(torch.tensor(voxels))

    def spacing(self, size):
        return self.grid_spacing

    def forward(self, fixed, moving):
        in_cells = self.voxels / torch.tensor(self.grid_spacing)
        return in_cells.view(1, 3, 1, 1, 1).expand(len(fixed), 3, *fixed.shape[2:])


def image():
    return torch.rand(1, 2, *SIZE)


def points(number=7):
    return 3 + torch.rand(1, number, 3) * torch.tensor([26.0, 5.0, 14.0])


@pytest.mark.parametrize("spacing", [(2, 2, 2), (3, 1, 2)])
def test_every_iteration_is_read_at_the_points_in_voxels(spacing):
    net, at = RegistrationNet(torch.nn.Identity(), Ramp(spacing)), points()

    found = KeypointTraining(net)(image(), fixed_points=at)

    # cell n begins at voxel n * step, its centre lies (step - 1) / 2 behind
    step = torch.tensor(spacing, dtype=torch.float32)
    x, y, z = ((at - (step - 1) / 2) / step).unbind(2)
    ramp = torch.stack([0.1 * x, 0.2 * z, 0.3 * y], 2) * step
    expected = torch.stack([ramp, 2 * ramp, 3 * ramp], 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_last_iteration_is_what_the_network_gives(smooth_field):
    net, at = RegistrationNet(torch.nn.Identity(), Ramp((1, 1, 1))), points()
    training = KeypointTraining(net)

    last = training(image(), fixed_points=at)[:, -1]
    whole = training.eval()(image())

    torch.testing.assert_close(last, sample_points(whole, at), rtol=1e-3, atol=1e-3)


def test_only_the_last_stage_learns_and_starts_from_what_is_found_before():
    first, last = Shift((4, 4, 4), (1.0, -2.0, 3.0)), Ramp((2, 3, 1))
    net, at = RegistrationNet(torch.nn.Identity(), first, last), points()

    found = KeypointTraining(net)(image(), fixed_points=at)
    alone = KeypointTraining(RegistrationNet(torch.nn.Identity(), last))(image(), fixed_points=at)

    shift = torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(found, alone + shift, rtol=1e-3, atol=1e-3)
    found.sum().backward()
    assert last.weight.grad.abs() > 0
    assert first.voxels.grad is None


def test_a_field_that_is_given_takes_the_place_of_what_is_found_before():
    net, at = RegistrationNet(torch.nn.Identity(), Shift((4, 4, 4), (9.0, 9.0, 9.0)), Ramp((2, 3, 1))), points()
    given = torch.tensor([0.5, 1.5, -2.5]).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)

    found = KeypointTraining(net)(image(), fixed_points=at, initial_ddf=given)
    alone = KeypointTraining(RegistrationNet(torch.nn.Identity(), Ramp((2, 3, 1))))(image(), fixed_points=at)

    torch.testing.assert_close(found, alone + torch.tensor([0.5, 1.5, -2.5]), rtol=1e-3, atol=1e-3)


def test_masks_reach_the_stage():
    estimator = Learn2OptimiseEstimator((2, 1, 1), 1, step=1.0)
    torch.nn.init.normal_(estimator.network.remaining[-1][-1].weight)
    training, pair, at = KeypointTraining(RegistrationNet(torch.nn.Identity(), estimator)), image(), points()
    mask = torch.ones(1, 1, *SIZE)
    half = mask.clone()
    half[..., 10:] = 0

    with torch.no_grad():
        whole, masked = (training(pair, mask, fixed_mask, at) for fixed_mask in (mask, half))

    assert whole.shape == (1, 1, 7, 3)
    assert (whole - masked).abs().max() > 1e-3


def test_what_gauss_newton_finds_on_control_points_is_read_in_cells_of_the_features(texture):
    size = (24, 17, 20)
    pair = torch.cat([texture(size, 3.0), texture(size, 3.0, 1)], 1)
    net, at = RegistrationNet(torch.nn.Identity(), GaussNewtonEstimator(4, 2, 0.5)), points()[:, :3].clamp(max=12)

    found = KeypointTraining(net)(pair, fixed_points=at)

    assert found.shape == (1, 2, 3, 3)
    torch.testing.assert_close(found[:, -1], sample_points(net(pair), at), rtol=1e-3, atol=1e-3)


def test_a_network_at_points_answers_in_voxels_once_or_with_its_probabilities():
    estimator = VoxelMorphPlusPlusEstimator(labels=3, grid_spacing=(2, 1, 1), fraction=0.4)
    net, pair, at = RegistrationNet(torch.nn.Identity(), estimator), image(), points()

    mean = KeypointTraining(net)(pair, fixed_points=at)
    pred = KeypointTraining(net, distribution=True)(pair, fixed_points=at)

    assert isinstance(pred, KeypointDistribution)
    assert mean.shape == (1, 1, 7, 3)
    torch.testing.assert_close(pred.points, at)
    torch.testing.assert_close(pred.mean(), mean[:, 0], rtol=1e-3, atol=1e-4)
    # bins of two thirds of 0.4 of half the image, whatever the cells
    torch.testing.assert_close(pred.displacements.amax(0), torch.tensor(SIZE) * 0.4 / 2 * 2 / 3)


def test_of_any_other_network_the_field_is_read():
    net, at = RegistrationNet(torch.nn.Identity(), VoxelMorphEstimator(grid_spacing=2)), points()
    pair = image()

    found = KeypointTraining(net)(pair, fixed_points=at)

    torch.testing.assert_close(found[:, 0], sample_points(net(pair), at))


def test_points_that_are_not_known_do_no_harm():
    net, at = RegistrationNet(torch.nn.Identity(), Ramp((2, 2, 2))), points()
    spoiled = torch.cat([at, torch.full((1, 2, 3), torch.nan)], 1)

    found = KeypointTraining(net)(image(), fixed_points=spoiled)

    assert found.shape == (1, 3, 9, 3)
    assert torch.isfinite(found).all()


def test_bad_input_is_refused():
    net = RegistrationNet(torch.nn.Identity(), Ramp((2, 2, 2)))

    with pytest.raises(ValueError, match="needs fixed_points"):
        KeypointTraining(net)(image())
    with pytest.raises(TypeError, match="Ramp knows no probabilities at points"):
        KeypointTraining(net, distribution=True)
    other = KeypointTraining(RegistrationNet(torch.nn.Identity(), Shift((2, 2, 2), (0.0, 0.0, 0.0))))
    with pytest.raises(TypeError, match="Shift starts from no field"):
        other(image(), fixed_points=points(), initial_ddf=torch.zeros(1, 3, *SIZE))
