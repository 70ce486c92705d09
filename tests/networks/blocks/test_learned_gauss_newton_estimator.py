# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from monai_reg_ext.networks.blocks import (
    CoupledConvexEstimator,
    GaussNewtonEstimator,
    LearnedGaussNewtonEstimator,
    MindSSC,
    SignedDistanceFeatures,
)
from monai_reg_ext.networks.layers.graph_laplacian import graph_laplacian
from monai_reg_ext.networks.layers.signed_distance import signed_distance
from monai_reg_ext.networks.layers.solve_normal_equations import solve_normal_equations
from monai_reg_ext.networks.layers.upsample_ddf import upsample_ddf
from monai_reg_ext.networks.layers.warp import identity_grid, warp
from monai_reg_ext.networks.nets import RegistrationNet

PLANE, SOLID = (30, 25), (22, 17, 26)


def waves(size, channels=1, phase=0.0):
    """Smooth features."""
    places = identity_grid(size, torch.zeros(1))[0]
    return torch.stack(
        [sum((place / (3 + axis + c) + phase + c).sin() for axis, place in enumerate(places)) for c in range(channels)]
    )[None]


def conventional(features, derived_axis=None):
    """Derivative and binomials at every second voxel; binomials at every second of these, from the next one on."""
    axes, channels = features.dim() - 2, features.shape[1]
    smooth, derivative = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([-0.5, 0.0, 0.5])
    for layer, padding in enumerate([(1, 1), (0, 2)]):
        features = F.pad(features, padding * axes, mode="replicate")
        taps = [derivative if axis == derived_axis and layer == 0 else smooth for axis in range(axes)]
        kernel = taps[0][:, None] * taps[1]
        if axes == 3:
            kernel = kernel[..., None] * taps[2]
        convolve = F.conv2d if axes == 2 else F.conv3d
        kernel = kernel.expand(channels, 1, *[3] * axes)
        features = convolve(features, kernel.to(features), stride=2, groups=channels)
    return features


def conventional_steps(fixed, moving, regularizations, coupled, tolerance):
    """Warp, average slopes and differences by the kernels, multiply, solve."""
    axes, size = fixed.dim() - 2, fixed.shape[2:]
    field = torch.zeros(1, axes, *(-(-extent // 4) for extent in size))
    pairs = [(one, other) for one in range(axes) for other in range(one, axes) if coupled or one == other]
    for regularization in regularizations:
        warped = warp(moving, upsample_ddf(field / 4, [4] * axes, size))
        slopes, difference = [conventional(warped, axis) for axis in range(axes)], conventional(warped - fixed)
        matrix = torch.stack([(slopes[one] * slopes[other]).sum(1) for one, other in pairs], 1)
        right_side = -torch.stack([(slope * difference).sum(1) for slope in slopes], 1)
        right_side = right_side - regularization * graph_laplacian(field)
        field = field + solve_normal_equations(matrix, right_side, regularization, tolerance=tolerance).values
    return upsample_ddf(field / 4, [4] * axes, size)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize(("size", "channels"), [(PLANE, 2), (SOLID, 1)])
def test_untrained_it_is_the_conventional_scheme_with_the_same_kernels(size, channels, coupled):
    fixed, moving = waves(size, channels), waves(size, channels, 0.3)
    estimator = LearnedGaussNewtonEstimator(channels, len(size), 4, 3, (0.4, 0.1), coupled, tolerance=1e-5)

    found = estimator(fixed, moving)

    expected = conventional_steps(fixed, moving, [0.4, 0.2, 0.1], coupled, 1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.abs().max() > 0.3


@pytest.mark.parametrize("grid_spacing", [1, 2, 4])
def test_untrained_it_finds_what_the_pooled_equations_find(grid_spacing):
    fixed, moving = waves(SOLID, 3), waves(SOLID, 3, 0.25)

    found, pooled = (
        estimator(fixed, moving)
        for estimator in (
            LearnedGaussNewtonEstimator(3, 3, grid_spacing, 6, 0.05),
            GaussNewtonEstimator(grid_spacing, 6, 0.05, dense=False),
        )
    )

    assert (found - pooled).square().mean() < 0.05 * pooled.square().mean()


def warp_in_float64(image, ddf):
    """As the layer, which computes in float32."""
    places = identity_grid(ddf.shape[2:], ddf) + ddf
    size = image.new_tensor(image.shape[2:]).view(1, -1, *[1] * (ddf.dim() - 2))
    grid = ((2 * places + 1) / size - 1).movedim(1, -1).flip(-1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("size", [(9, 6), (6, 5, 9)])
def test_gradients_of_all_that_is_learned_are_right_through_all_steps(monkeypatch, size, coupled):
    module = importlib.import_module("monai_reg_ext.networks.blocks.learned_gauss_newton_estimator")
    monkeypatch.setattr(module, "warp", warp_in_float64)
    estimator = LearnedGaussNewtonEstimator(2, len(size), 4, 3, (2.0, 0.5), coupled, tolerance=1e-11).double()
    names, weights = zip(*estimator.named_parameters(), strict=True)
    fixed, moving = 3 * torch.rand(2, 1, 2, *size, dtype=torch.float64)

    def registered(*weights):
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(estimator, given, (fixed, moving))

    assert len(names) == 2 * (len(size) + 1) + 1
    assert gradcheck(registered, weights, fast_mode=True)
    gradients = torch.autograd.grad(registered(*weights).square().sum(), weights)
    assert all(gradient.norm() > 1e-4 for gradient in gradients)


def phantoms():
    """Two pairs of one-hot maps on a plane, an ellipse and a bar, ``(4, 3, *size)``: two fixed, two moving."""
    i, j = identity_grid((36, 44), torch.zeros(1))[0]
    maps = []
    for shift, stretch in [(0.0, 1.0), (2.0, 1.1), (4.0, 1.25), (-3.0, 0.85)]:
        ellipse = ((i - 15 - shift) / (8 * stretch)) ** 2 + ((j - 15) / 7) ** 2 < 1
        bar = ((i - 18).abs() < 9 / stretch) & ((j - 33 - shift / 2).abs() < 4 * stretch)
        maps.append(torch.stack([~(ellipse | bar), ellipse & ~bar, bar]).float())
    return torch.stack(maps)


def test_training_reduces_the_loss_of_warped_labels():
    labels = phantoms()
    features = 20 * signed_distance(1 - labels[:, :1])
    # another contrast, which leaves a difference that no field removes
    fixed, moving = features[:2], 1.5 * features[2:]
    estimator = LearnedGaussNewtonEstimator(1, 2, 4, 4, (1500.0, 700.0), training_iterations=3)
    optimizer = torch.optim.AdamW(estimator.parameters(), lr=5e-3)

    losses = []
    for _ in range(8):
        loss = F.mse_loss(warp(labels[2:], estimator(fixed, moving)), labels[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[0] < F.mse_loss(labels[2:], labels[:2])
    assert losses[-1] < 0.6 * losses[0]


def test_its_weights_fall_geometrically_between_two_that_are_learned():
    estimator = LearnedGaussNewtonEstimator(iterations=3, regularization=(100.0, 25.0))
    torch.testing.assert_close(estimator.schedule(), torch.tensor([100.0, 50.0, 25.0]))

    with torch.no_grad():
        estimator.log_regularization += torch.tensor([4.0, 1.0]).log()

    torch.testing.assert_close(estimator.schedule(), torch.tensor([400.0, 100.0, 25.0]))


def test_training_may_take_fewer_steps_and_more_later():
    fixed, moving = waves(PLANE), waves(PLANE, 1, 0.3)
    estimator = LearnedGaussNewtonEstimator(1, 2, 4, 5, (0.4, 0.1), training_iterations=2)

    fields = list(estimator.fields(fixed, moving))
    estimator.training_iterations = 4
    more = list(estimator.fields(fixed, moving))
    all_of_them = list(estimator.eval().fields(fixed, moving))

    assert [len(fields), len(more), len(all_of_them)] == [3, 5, 6]
    for few in (fields, more):
        for one, other in zip(few, all_of_them, strict=False):
            torch.testing.assert_close(one, other)


def test_a_conventional_one_that_trains_features_may_take_fewer_steps_too():
    fixed, moving = waves(PLANE), waves(PLANE, 1, 0.3)
    estimator = GaussNewtonEstimator(4, 5, training_iterations=2)

    assert len(list(estimator.fields(fixed, moving))) == 3
    assert len(list(estimator.eval().fields(fixed, moving))) == 6


@pytest.mark.parametrize("side", ["fixed_mask", "moving_mask"])
def test_what_lies_outside_a_mask_is_not_matched(side):
    given = {"fixed": waves(SOLID), "moving": waves(SOLID, 1, 0.3)}
    mask = torch.ones_like(given["fixed"])
    mask[..., 18:] = 0
    spoiled = {name: features.clone() for name, features in given.items()}
    spoiled[side.removesuffix("_mask")][..., 18:] = 100 * torch.rand(22, 17, 8)
    estimator = LearnedGaussNewtonEstimator(1, 3, 4, 1, 0.2)

    kept, found = estimator(**given, **{side: mask}), estimator(**spoiled, **{side: mask})

    torch.testing.assert_close(found, kept, rtol=0, atol=1e-4)
    assert (estimator(**spoiled) - kept).abs().max() > 0.3


def test_its_energy_is_that_of_what_the_stencils_see():
    fixed, moving = waves(PLANE), waves(PLANE, 1, 0.3)
    estimator = LearnedGaussNewtonEstimator(1, 2, 4, 4, 0.2)

    fields = list(estimator.fields(fixed, moving))
    energies = [estimator.energy(fixed, moving, field, 0.2) for field in (fields[0], fields[-1])]

    torch.testing.assert_close(energies[0], conventional(moving - fixed).square().sum().view(1) / 2)
    assert energies[1] < 0.5 * energies[0]


def test_it_is_an_estimator_and_a_refiner_of_the_skeleton(texture, smooth_field):
    size = (30, 27, 33)
    moving = (texture(size, 4.0) > 0.7).float()
    fixed = warp(moving, smooth_field(size, 4.0, 5.0), mode="nearest")
    image, masks = torch.cat([moving, fixed], 1), (torch.ones_like(fixed), torch.ones_like(fixed))

    ddf = RegistrationNet(SignedDistanceFeatures(), LearnedGaussNewtonEstimator(1, iterations=5))(image)

    before, after = ((label * fixed).sum() / fixed.sum() for label in (moving, warp(moving, ddf, "nearest")))
    assert after > max(0.85, before)
    refiner = LearnedGaussNewtonEstimator(12, 3, 4, 2, (2.0, 0.5), feature_spacing=2)
    net = RegistrationNet(MindSSC(), CoupledConvexEstimator(4, 2, couplings=(1.0,)), refiner)
    refined = net(image + 0.1 * texture(size, 1.0), *masks)
    assert refined.shape == (1, 3, *size)
    refined.square().sum().backward()
    assert all(parameter.grad.norm() > 0 for parameter in refiner.parameters())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="regularization must be > 0"):
        LearnedGaussNewtonEstimator(regularization=0.0)
    with pytest.raises(ValueError, match="grid_spacing of 1, 2 or 4"):
        LearnedGaussNewtonEstimator(grid_spacing=3)
    with pytest.raises(ValueError, match="stencils for 2 channels on 3 axes"):
        LearnedGaussNewtonEstimator(2)(waves(SOLID), waves(SOLID))
