# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from monai_reg_ext.networks.blocks import (
    CoupledConvexEstimator,
    GaussNewtonEstimator,
    MindSSC,
    SegmentationChannel,
    SignedDistanceFeatures,
)
from monai_reg_ext.networks.layers.graph_laplacian import graph_laplacian
from monai_reg_ext.networks.layers.normal_equations import normal_equations
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.signed_distance import signed_distance
from monai_reg_ext.networks.layers.solve_normal_equations import solve_normal_equations
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.networks.nets import RegistrationNet

SIZE = (30, 27, 33)


def blobs(texture, smooth_field, size=SIZE, seed=0):
    """Label map of blobs moved by a field of up to 5 voxels, and as it was."""
    moving = (texture(size, 4.0, seed) > 0.7).float()
    return warp(moving, smooth_field(size, 5.0, 5.0, seed), mode="nearest"), moving


@pytest.fixture
def maps(texture, smooth_field):
    """Distance maps of a fixed and a moving label map."""
    return tuple(signed_distance(label) for label in blobs(texture, smooth_field))


def step_by_hand(fixed, moving, field, regularization):
    """One step for even voxels and cells of 4: warp, linearise, solve."""
    ddf = upsample_ddf(field / 4, (4, 4, 4), fixed.shape[2:])
    matrix, right_side = normal_equations(fixed, warp(moving, ddf), (4, 4, 4))
    right_side = right_side - regularization * graph_laplacian(field)
    return solve_normal_equations(matrix, right_side, regularization).values


def energies(estimator, maps, regularization):
    return [estimator.energy(*maps, field, regularization).item() for field in estimator.fields(*maps)]


@pytest.mark.parametrize("slopes", ["warped", "moving", "mean"])
@pytest.mark.parametrize("regularization", [50.0, 5.0, 0.5])
def test_the_energy_falls_with_every_step_also_when_hardly_regularised(maps, regularization, slopes):
    values = energies(GaussNewtonEstimator(4, 6, regularization, slopes=slopes), maps, regularization)

    assert len(values) == 7
    assert all(after < before for before, after in pairwise(values))
    assert values[-1] < 0.4 * values[0]


def test_components_by_themselves_go_too_far_where_together_they_do_not(maps):
    together, apart = (
        energies(GaussNewtonEstimator(4, 6, 0.5, coupled=coupled), maps, 0.5) for coupled in (True, False)
    )

    assert together[-1] < 0.7 * apart[-1]
    assert any(after > before for before, after in pairwise(apart))


def test_each_step_is_that_of_the_equations_on_the_total_displacement(maps):
    estimator = GaussNewtonEstimator(4, 3, (80.0, 5.0))

    fields = list(estimator.fields(*maps))

    for (before, after), regularization in zip(pairwise(fields), [80.0, 20.0, 5.0], strict=True):
        step = step_by_hand(*maps, before, regularization)
        torch.testing.assert_close(after - before, step, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(estimator(*maps), upsample_ddf(fields[-1] / 4, (4, 4, 4), SIZE))


def test_compat_keeps_half_of_the_last_change_and_drops_the_last_step(maps):
    estimator = GaussNewtonEstimator(4, 3, 50.0, compat=True)

    fields = list(estimator.fields(*maps))

    first = step_by_hand(*maps, fields[0], 50.0)
    second = step_by_hand(*maps, first, 50.0)
    torch.testing.assert_close(fields[2], first + second + first / 2, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(estimator(*maps), upsample_ddf(fields[2] / 4, (4, 4, 4), SIZE))


@pytest.mark.parametrize("slopes", ["warped", "moving", "mean"])
@pytest.mark.parametrize("dense", [True, False])
def test_a_translation_is_found(shifted_pair, interior, slopes, dense):
    moving, fixed = shifted_pair((34, 30, 38), (2, -1, 1))

    ddf = GaussNewtonEstimator(3, 12, (1.0, 0.02), slopes=slopes, dense=dense)(fixed, moving)

    expected = torch.tensor([2.0, -1, 1]).view(1, 3, 1, 1, 1).expand_as(ddf)
    assert interior(ddf - expected, 6).abs().mean() < 0.1


def test_a_translation_is_found_in_two_dimensions():
    i, j = torch.meshgrid(torch.arange(40.0), torch.arange(30.0), indexing="ij")

    def scene(i, j):
        return torch.stack([(i / 4).sin() + (j / 5).cos(), (i / 6 + j / 4).sin()])[None]

    ddf = GaussNewtonEstimator((4, 3), 8, (0.5, 0.01))(scene(i + 2, j - 1), scene(i, j))

    assert ddf.shape == (1, 2, 40, 30)
    inner = ddf[..., 10:-10, 10:-10]
    torch.testing.assert_close(inner, torch.tensor([2.0, -1]).view(1, 2, 1, 1).expand_as(inner), rtol=0, atol=0.15)


def test_equal_images_are_left_where_they_are(maps):
    assert GaussNewtonEstimator(4, 2)(maps[0], maps[0]).abs().max() < 1e-5


def test_features_of_another_scale_need_its_square_as_weight(maps):
    one = GaussNewtonEstimator(4, 3, (100.0, 20.0))(*maps)
    other = GaussNewtonEstimator(4, 3, (1.0, 0.2))(*(0.1 * features for features in maps))

    torch.testing.assert_close(one, other, rtol=0, atol=5e-3)


def test_a_pair_is_registered_the_same_whatever_stands_beside_it(texture, smooth_field):
    pairs = [torch.cat(blobs(texture, smooth_field, seed=seed), 1) for seed in (0, 1)]
    fixed, moving = signed_distance(torch.cat(pairs)).split(1, 1)
    estimator = GaussNewtonEstimator(4, 3)

    together = estimator(fixed, moving)

    for item in range(2):
        alone = estimator(fixed[item : item + 1], moving[item : item + 1])
        torch.testing.assert_close(together[item : item + 1], alone, rtol=1e-4, atol=1e-4)


def test_as_refiner_it_starts_from_the_given_field(maps, smooth_field):
    start = smooth_field(SIZE, 2.0)
    estimator = GaussNewtonEstimator((4, 3, 5), 2)

    fields = list(estimator.fields(*maps, start))

    torch.testing.assert_close(fields[0], pool_to_grid(start, (4, 3, 5)))
    torch.testing.assert_close(estimator(*maps, start), estimator.at_features(fields[-1], SIZE))
    assert (estimator(*maps, start) - estimator(*maps)).abs().max() > 0.1


@pytest.mark.parametrize("settings", [{}, {"voxel_size": (1.0, 2.0, 1.5)}, {"coupled": False, "dense": False}])
def test_with_backtracking_the_energy_falls_where_whole_steps_raise_it(texture, settings):
    fixed, moving = (torch.cat([texture((18, 15, 21), 1.0, seed) for seed in pair]) for pair in ((1, 3), (2, 4)))
    whole, halved = (GaussNewtonEstimator(4, 8, 0.002, backtracking=number, **settings) for number in (0, 5))

    rising, falling = (
        torch.stack([estimator.energy(fixed, moving, field, 0.002) for field in estimator.fields(fixed, moving)])
        for estimator in (whole, halved)
    )

    assert (rising.diff(dim=0) > 0).any()
    assert (falling.diff(dim=0) <= 0).all()
    assert (falling[-1] < falling[0]).all()


def test_backtracking_leaves_steps_that_lower_the_energy_as_they_are(maps):
    plain, checked = (GaussNewtonEstimator(4, 3, backtracking=number)(*maps) for number in (0, 3))

    torch.testing.assert_close(checked, plain, rtol=0, atol=0)


def test_backtracking_below_nothing_is_refused():
    with pytest.raises(ValueError, match="backtracking must be 0 halvings of a step or more, got -1"):
        GaussNewtonEstimator(backtracking=-1)


def test_each_sample_of_a_batch_is_halved_by_itself(texture, maps):
    size = maps[0].shape[2:]
    noise = 100 * texture(size, 1.0, 1), 100 * texture(size, 1.0, 2)
    estimator = GaussNewtonEstimator(4, 3, 5.0, backtracking=4)

    together = estimator(*(torch.cat(both) for both in zip(maps, noise, strict=True)))

    for found, alone in zip(together.split(1), (maps, noise), strict=True):
        torch.testing.assert_close(found, estimator(*alone), rtol=1e-3, atol=1e-2)


def test_the_energy_counts_differences_of_the_field_in_space():
    # voxels of 1 x 2 x 4, cells of 4 x 3 x 2 voxels: 4 x 6 x 8 long
    estimator = GaussNewtonEstimator((4, 3, 2), voxel_size=(1, 2, 4))
    nothing, field = torch.zeros(1, 1, 12, 9, 10), torch.randn(1, 3, 3, 3, 5)

    energy = estimator.energy(nothing, nothing, field, 7.0)

    length, cell = torch.tensor([1.0, 2, 4]) / 2, torch.tensor([4.0, 6, 8]) / (4 * 6 * 8) ** (1 / 3)
    squares = [(length.view(1, 3, 1, 1, 1) * field).diff(dim=2 + axis).square().sum() for axis in range(3)]
    expected = 3.5 * sum(square / edge**2 for square, edge in zip(squares, cell, strict=True))
    torch.testing.assert_close(energy.squeeze(), expected)
    even = GaussNewtonEstimator((4, 4, 4), voxel_size=5.0).energy(nothing, nothing, field[..., :3], 7.0)
    roughness = sum(field[..., :3].diff(dim=dim).square().sum() for dim in (2, 3, 4))
    torch.testing.assert_close(even.squeeze(), 3.5 * roughness)


@pytest.mark.parametrize("coupled", [True, False])
def test_steps_end_where_the_energy_of_uneven_voxels_is_least(texture, smooth_field, coupled):
    moving = texture((28, 27, 30), 4.0)
    fixed = warp(moving, smooth_field((28, 27, 30), 1.5, 5.0))
    estimator = GaussNewtonEstimator((2, 3, 1), 20, 0.5, coupled, voxel_size=(1, 1.5, 3), tolerance=1e-5)

    *_, last = estimator.fields(fixed, moving)

    slopes = []
    for field in (torch.zeros_like(last), last):
        field.requires_grad_()
        slopes.append(torch.autograd.grad(estimator.energy(fixed, moving, field, 0.5).sum(), field)[0])
    length = estimator._metric(last)[0]
    # 0.04: interpolation has other slopes than differences; 0.3 and more with other weights or lengths
    assert (slopes[1] / length).norm() < 0.1 * (slopes[0] / length).norm()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("side", ["fixed_mask", "moving_mask"])
def test_what_lies_outside_a_mask_is_not_matched(maps, side, dense):
    fixed, moving = maps
    mask = torch.ones_like(fixed)
    mask[:, :, 20:] = 0
    number = ["fixed_mask", "moving_mask"].index(side)
    spoiled = [fixed.clone(), moving.clone()]
    spoiled[number][:, :, 23:] = 100 * torch.rand_like(fixed[:, :, 23:])
    estimator = GaussNewtonEstimator((4, 3, 5), 1, 50.0, dense=dense)

    kept, found = estimator(*maps, **{side: mask}), estimator(*spoiled, **{side: mask})

    torch.testing.assert_close(found, kept, rtol=0, atol=1e-2)
    assert (estimator(*spoiled) - kept).abs().max() > 0.5


def test_gradients_reach_the_features_and_the_first_field(maps, smooth_field):
    estimator = GaussNewtonEstimator(4, 2, 0.125, tolerance=1e-5)
    fixed, moving = (0.05 * features for features in maps)
    start, weight = smooth_field(SIZE, 1.0), smooth_field(SIZE, 1.0, seed=5)
    given = [tensor.clone().requires_grad_() for tensor in (fixed, moving, start)]

    gradients = torch.autograd.grad((weight * estimator(*given)).sum(), given)

    for number, gradient in enumerate(gradients):
        direction = smooth_field(SIZE, 1.0, seed=number + 1)[:, : gradient.shape[1]]
        ends = [[*given[:number], given[number] + step * direction, *given[number + 1 :]] for step in (0.003, -0.003)]
        with torch.no_grad():
            above, below = ((weight.double() * estimator(*end).double()).sum().item() for end in ends)
        assert (gradient * direction).sum().item() == pytest.approx((above - below) / 0.006, rel=0.01, abs=0.02)


@pytest.mark.parametrize("size", [(30, 27, 33), (29, 31, 26)])
def test_it_is_an_estimator_of_the_skeleton_for_sizes_that_are_no_multiple(texture, smooth_field, size):
    fixed, moving = blobs(texture, smooth_field, size)

    ddf = RegistrationNet(SignedDistanceFeatures(), GaussNewtonEstimator(4))(torch.cat([moving, fixed], 1))

    assert ddf.shape == (1, 3, *size)
    before, after = ((label * fixed).sum() / fixed.sum() for label in (moving, warp(moving, ddf, "nearest")))
    assert after > max(0.9, before)


def test_it_is_a_refiner_of_the_skeleton_behind_any_estimator(texture, smooth_field):
    fixed, moving = blobs(texture, smooth_field)
    image = torch.cat([moving, fixed], 1) + 0.1 * texture(SIZE, 1.0)
    masks = torch.ones_like(fixed), torch.ones_like(fixed)
    refiner = GaussNewtonEstimator(4, 3, (2.0, 0.5), feature_spacing=2)
    net = RegistrationNet(MindSSC(), CoupledConvexEstimator(4, 2, couplings=(1.0,)), refiner)

    ddf = net(image)

    assert refiner.spacing(SIZE) == (2, 2, 2)
    assert ddf.shape == (1, 3, *SIZE)
    features = [MindSSC().pooled(side, [(2, 2, 2)])[0] for side in (image[:, 1:], image[:, :1])]
    found = downsample_ddf(ddf, (8, 8, 8)) * 4  # control points, in cells of 2 voxels
    assert refiner.energy(*features, found, 0.5) < refiner.energy(*features, 0 * found, 0.5)
    assert net(image, *masks).isfinite().all()


def test_features_may_come_from_a_segmentation_network(texture, smooth_field):
    fixed, moving = blobs(texture, smooth_field)
    network = torch.nn.Conv3d(1, 2, 1)  # background where the image is below 0.5
    network.weight.data, network.bias.data = torch.tensor([-1.0, 1]).view(2, 1, 1, 1, 1), torch.tensor([0.5, -0.5])
    parts = SignedDistanceFeatures(), GaussNewtonEstimator(4, 2)
    image = torch.cat([moving, fixed], 1)

    segmentation = SegmentationChannel(network, [0, 1], keep_image=False)

    torch.testing.assert_close(RegistrationNet(*parts, preparation=segmentation)(image), RegistrationNet(*parts)(image))


def test_without_anything_to_match_nothing_moves_and_a_warning_tells(texture, smooth_field):
    fixed, moving = blobs(texture, smooth_field)
    net = RegistrationNet(SignedDistanceFeatures(), GaussNewtonEstimator(4, 2))

    for empty in (torch.cat([moving, 0 * fixed], 1), torch.cat([0 * moving, fixed], 1)):
        with pytest.warns(UserWarning, match="without any gradient"):
            assert net(empty).abs().max() == 0


def test_features_without_slope_along_an_axis_do_not_move_along_it(maps):
    fixed, moving = (features.mean(3, keepdim=True).expand_as(features) for features in maps)

    with pytest.warns(UserWarning, match="without any gradient"):
        ddf = GaussNewtonEstimator(4, 3)(fixed, moving)

    # the field is not quite the same in the half cells at the border, which makes small slopes
    assert ddf[:, 1].abs().max() < 0.25
    assert ddf[:, 0].abs().max() > 0.5


@pytest.mark.parametrize("regularization", [0.0, -1.0, (5.0, 0.0), float("nan"), float("inf")])
def test_the_weight_must_be_positive(regularization):
    with pytest.raises(ValueError, match="regularization must be > 0"):
        GaussNewtonEstimator(regularization=regularization)


def test_other_bad_input_is_refused(maps):
    with pytest.raises(ValueError, match="slopes must be one of"):
        GaussNewtonEstimator(slopes="fixed")
    spoiled = maps[1].clone()
    spoiled[0, 0, 5, 6, 7] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        GaussNewtonEstimator(4, 2)(maps[0], spoiled)
    with pytest.raises(ValueError, match="on one grid"):
        GaussNewtonEstimator(4, 2)(maps[0], maps[1][:, :, :-1])
