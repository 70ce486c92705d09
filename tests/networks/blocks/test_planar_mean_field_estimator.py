# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.mean_field import MeanField
from monai_reg_ext.networks.blocks.mean_field_estimator import MeanFieldEstimator
from monai_reg_ext.networks.blocks.planar_mean_field_estimator import PlanarMeanFieldEstimator
from monai_reg_ext.networks.blocks.probability_refiner import ProbabilityRefiner
from monai_reg_ext.networks.layers.box_filter import box_filter

SIZE = (15, 13, 17)
WINDOW = {"grid_spacing": 1, "points": SIZE, "labels": (7, 5, 9), "reach": (3, 2, 4)}


def features(shift: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed features and moving ones that lie a shift further on."""
    fixed = 3 * torch.rand(1, 8, *SIZE, generator=torch.Generator().manual_seed(0))
    return fixed, fixed.roll(shift, (2, 3, 4))


def ramps(shift: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose squared difference grows with the distance from the match, along each axis by itself."""
    fixed = torch.stack(torch.meshgrid(*(torch.arange(float(extent)) for extent in SIZE), indexing="ij"))[None]
    return fixed, fixed - torch.tensor(shift).view(1, 3, 1, 1, 1)


def test_the_expected_displacement_of_a_separable_cost_is_that_of_the_whole_window():
    fixed, moving = ramps((1.0, -0.5, 2.0))
    field = MeanField(0.7, rounds=1, envelope_weight=5.0)

    planar = PlanarMeanFieldEstimator(1, mean_field=field, **WINDOW)(fixed, moving)

    cube = MeanFieldEstimator(field, **WINDOW)(fixed, moving)
    inner = (..., slice(6, -6), slice(6, -6), slice(7, -7))
    torch.testing.assert_close(planar[inner], cube[inner], atol=1e-4, rtol=1e-4)


def test_each_plane_searches_along_two_axes_only():
    estimator = PlanarMeanFieldEstimator(1, **WINDOW)

    planes = estimator.distribution(*features((0, 0, 0))).planes

    assert [plane.grid.window for plane in planes] == [(1, 5, 9), (7, 1, 9), (7, 5, 1)]
    for plane in planes:
        torch.testing.assert_close(plane.probabilities.sum((1, 2, 3)), torch.ones(1, *SIZE), atol=1e-4, rtol=0)


def test_later_steps_find_what_the_first_planes_do_not_meet():
    # smooth features: planes beside the match still tell the way
    fixed, moving = (box_filter(side, (3, 3)) for side in features((2, -1, 3)))

    def error(steps):
        field = PlanarMeanFieldEstimator(steps, mean_field=MeanField(1000.0, averages=1), **WINDOW)(fixed, moving)
        return (field - torch.tensor([2.0, -1, 3]).view(1, 3, 1, 1, 1)).abs()[..., 4:-4, 4:-4, 5:-5].mean()

    # the first planes go through 0 and meet the match nowhere
    assert error(3) < 0.1 * error(1)


def test_the_later_planes_go_through_what_the_step_before_has_found():
    fixed, moving = features((1, 0, -1))
    first = PlanarMeanFieldEstimator(1, **WINDOW).eval()
    refiner = ProbabilityRefiner(5)

    planes = PlanarMeanFieldEstimator(2, **WINDOW).eval().distribution(fixed, moving).planes
    refined = PlanarMeanFieldEstimator(2, refiner, **WINDOW).eval().distribution(fixed, moving).planes

    mean = first.distribution(fixed, moving).mean()
    at_points = refiner.at_points(first.distribution(fixed, moving))
    for axis in range(3):
        offsets = torch.zeros_like(mean), torch.zeros_like(mean)
        offsets[0][:, axis], offsets[1][:, axis] = mean[:, axis], at_points[:, axis]
        torch.testing.assert_close(planes[axis].offset, offsets[0])
        torch.testing.assert_close(refined[axis].offset, offsets[1])


def test_planes_are_shaken_in_training_only():
    fixed, moving = features((1, 0, -1))
    estimator = PlanarMeanFieldEstimator(2, noise=0.5, **WINDOW)

    quiet = [estimator.eval().distribution(fixed, moving).planes[1].offset for _ in range(2)]
    shaken = estimator.train().distribution(fixed, moving).planes[1].offset

    assert torch.equal(*quiet)
    difference = (shaken - quiet[0])[:, 1]
    # steps of one cell
    assert 0.4 < difference.std() < 0.6
    assert torch.equal(shaken[:, [0, 2]], torch.zeros_like(shaken[:, [0, 2]]))


def test_the_mean_field_smooths_along_all_three_axes_and_the_reference_along_two():
    ours, reference = (PlanarMeanFieldEstimator(1, compat=compat, **WINDOW) for compat in (False, True))
    cost = torch.rand(1, 1, 5, 9, 3, 4, 6)
    changed = cost.clone()
    changed[..., 3] += 5

    for estimator, reached in ((ours, {0, 1, 2, 3, 4, 5}), (reference, {3})):
        difference = (
            (estimator.mean_field(changed) - estimator.mean_field(cost)).detach().abs().amax((0, 1, 2, 3, 4, 5))
        )
        assert set(difference.gt(1e-4).nonzero().flatten().tolist()) == reached


def test_its_weights_and_features_learn_from_the_last_step():
    fixed, moving = (side.requires_grad_() for side in features((1, 0, -1)))
    estimator = PlanarMeanFieldEstimator(2, **WINDOW)

    estimator(fixed, moving).square().sum().backward()

    assert all(tensor.grad.abs().max() > 0 for tensor in (fixed, moving, *estimator.parameters()))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps >= 1, got 0"):
        PlanarMeanFieldEstimator(0)
