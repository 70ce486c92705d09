# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from monai_reg_ext.networks.blocks.adam_refiner import AdamRefiner
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import warp

SIZE = (12, 14, 11)
CORNER = (..., 0, -1, 0)


@pytest.fixture
def features(texture):
    """Descriptors of two unrelated fixed and two unrelated moving images."""
    images = torch.cat([texture(SIZE, 2, seed) for seed in range(4)])
    return MindSSC()(images).chunk(2)


def constant_field(displacement, size=SIZE):
    return torch.tensor(displacement).view(1, 3, 1, 1, 1).expand(1, 3, *size)


def energy(fixed, moving, field, regularization):
    """What the refiner minimises, for a field with one voxel per cell."""
    data = (warp(moving, field) - fixed).square().sum(1).mean()
    return data + regularization * sum(field.diff(dim=dim).square().mean() for dim in (2, 3, 4))


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("spacing", [1, 2, (3, 1, 2)])
def test_without_iterations_the_field_is_only_smoothed_on_its_grid(features, smooth_field, spacing, compat):
    ddf, spacings = smooth_field(SIZE, 4.0), (spacing,) * 3 if isinstance(spacing, int) else spacing

    refined = AdamRefiner(spacing, 0, compat=compat)(*features, ddf)

    smooth = box_filter(downsample_ddf(ddf, spacings, compat), (3, 3, 3), compat)
    torch.testing.assert_close(refined, upsample_ddf(smooth, spacings, SIZE, compat))


def test_a_displacement_reaches_the_border_which_compat_shrinks(features):
    ddf = constant_field([2.0, -4, 6])

    exact, reference = (AdamRefiner(1, 0, compat=compat)(*features, ddf) for compat in (False, True))

    torch.testing.assert_close(exact, ddf)
    # at the end of a line one zero-padded box leaves 2/3, the next (2/3 + 1) / 3 = 5/9, the third (5/9 + 8/9) / 3
    torch.testing.assert_close(reference[CORNER], ddf[CORNER] * (13 / 27) ** 3)


@pytest.mark.parametrize("regularization", [0.1, 1.25, 10])
def test_more_iterations_leave_less_energy(features, regularization):
    fixed, moving = features
    start = torch.zeros(2, 3, *SIZE)

    energies = [
        energy(fixed, moving, AdamRefiner(1, steps, regularization)(fixed, moving, start), regularization)
        for steps in (0, 3, 12, 50)
    ]

    assert all(after < 0.98 * before for before, after in pairwise(energies))


def test_no_other_field_nearby_has_less_energy(features, smooth_field):
    fixed, moving = (part[:1] for part in features)

    refined = AdamRefiner(1, 150, 1.25, learning_rate=0.3)(fixed, moving, torch.zeros(1, 3, *SIZE))

    least = energy(fixed, moving, refined, 1.25)
    for seed in range(5):
        for step in (-0.2, 0.2):
            nearby = refined + box_filter(smooth_field(SIZE, step, seed=seed), (3, 3, 3))
            assert energy(fixed, moving, nearby, 1.25) > least


def test_a_large_weight_gives_a_flat_field(features):
    rough = 5 * torch.randn(2, 3, *SIZE)

    flat, free, start = (
        AdamRefiner(1, steps, weight, learning_rate=0.3)(*features, rough).flatten(2).std(2)
        for steps, weight in ((100, 1e4), (100, 1.25), (0, 0.0))
    )

    assert (flat < 0.05 * start).all()
    assert (free > start).all()


def test_a_shift_is_recovered_in_full_where_compat_falls_short(shifted_pair, interior):
    moving, fixed = shifted_pair((24, 28, 26), (3, 0, 0))
    pair = MindSSC()(fixed), MindSSC()(moving)
    start = constant_field([3.0, 0, 0], fixed.shape[2:])

    exact, reference = (
        interior(AdamRefiner(2, 120, 4.0, compat=compat)(*pair, start), 8).mean((0, 2, 3, 4))[0]
        for compat in (False, True)
    )

    assert exact == pytest.approx(3, abs=0.05)
    assert reference == pytest.approx(3 * 11 / 12, abs=0.1)  # (N - 1) / N with 24 / 2 = 12 cells


def test_compat_returns_the_field_before_the_last_step(features):
    start = torch.zeros(2, 3, *SIZE)

    def refined(steps, compat):
        return AdamRefiner(2, steps, compat=compat)(*features, start)

    assert torch.equal(refined(1, compat=True), refined(0, compat=True))
    assert refined(2, compat=True).abs().max() > 0.5
    assert refined(1, compat=False).abs().max() > 0.5


def test_compat_weighs_the_mean_over_channels_by_twelve_and_the_default_takes_their_sum(features):
    start = constant_field([0.3, -0.2, 0.1]).expand(2, -1, -1, -1, -1)
    four_times = [part.repeat(1, 4, 1, 1, 1) for part in features]

    def refined(pair, regularization, compat):
        return AdamRefiner(2, 8, regularization, compat=compat)(*pair, start)

    # rounding, which Adam blows up
    close = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(refined(four_times, 1.25, True), refined(features, 1.25, True), **close)
    torch.testing.assert_close(refined(four_times, 5.0, False), refined(features, 1.25, False), **close)
    assert (refined(four_times, 1.25, False) - refined(features, 1.25, False)).abs().max() > 0.1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_result_is_the_same_where_gradients_are_off(features, mode):
    start = torch.zeros(2, 3, *SIZE)
    refiner = AdamRefiner(2, 5)

    with mode():
        refined = refiner(*(part.clone() for part in features), start.clone())

    assert torch.equal(refined, refiner(*features, start))
    assert not refined.requires_grad


def test_the_graph_ends_here_and_the_inputs_stay_as_they_were(features):
    inputs = [*features, torch.zeros(2, 3, *SIZE)]
    before = [tensor.clone() for tensor in inputs]

    refined = AdamRefiner(1, 2)(*(tensor.requires_grad_() for tensor in inputs))

    assert not refined.requires_grad
    assert all(tensor.grad is None and torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))


def test_items_of_a_batch_are_refined_independently(features, smooth_field):
    ddf = torch.cat([smooth_field(SIZE, 1.0), smooth_field(SIZE, 30.0, seed=1)])
    refiner = AdamRefiner(2, 10)

    refined = refiner(*features, ddf)

    for item in range(2):
        alone = refiner(*(tensor[item : item + 1] for tensor in (*features, ddf)))
        torch.testing.assert_close(refined[item : item + 1], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("compat", [False, True])
def test_final_boxes_smooth_the_result_at_full_resolution(features, compat):
    start = torch.zeros(2, 3, *SIZE)

    smoothed = AdamRefiner(2, 3, final_widths=(5, 3), compat=compat)(*features, start)

    refined = AdamRefiner(2, 3, compat=compat)(*features, start)
    torch.testing.assert_close(smoothed, box_filter(refined, (5, 3), compat))


def test_wider_boxes_give_a_smoother_field(features):
    start = torch.zeros(2, 3, *SIZE)

    roughness = [
        AdamRefiner(1, 10, 0.0, widths)(*features, start).diff(dim=2).square().mean()
        for widths in ((3,), (3, 3, 3), (5, 5, 5))
    ]

    assert roughness[0] > roughness[1] > roughness[2]


def test_identical_constant_images_do_not_move():
    ones = torch.ones(1, 12, *SIZE)

    assert torch.equal(AdamRefiner(2, 5)(ones, ones, torch.zeros(1, 3, *SIZE)), torch.zeros(1, 3, *SIZE))


def test_an_image_thinner_than_a_cell_is_refined(features):
    slices = [part[..., :1] for part in features]

    refined = AdamRefiner(2, 3)(*slices, torch.zeros(2, 3, 12, 14, 1))

    assert refined.shape == (2, 3, 12, 14, 1)
    assert refined[:, :2].abs().max() > 0.5
