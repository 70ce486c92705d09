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
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
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


def double_energy(fixed, moving, field, regularization):
    """The same with torch's own sampling, which keeps double precision."""
    size = fixed.shape[2:]
    axes = torch.meshgrid(*(torch.arange(extent, dtype=torch.float64) for extent in size), indexing="ij")
    positions = torch.stack(axes) + field
    grid = torch.stack([(2 * positions[:, axis] + 1) / size[axis] - 1 for axis in (2, 1, 0)], -1)
    warped = torch.nn.functional.grid_sample(moving, grid, padding_mode="border", align_corners=False)
    data = (warped - fixed).square().sum(1).mean()
    return data + regularization * sum(field.diff(dim=dim).square().mean() for dim in (2, 3, 4))


@pytest.mark.parametrize("compat", [False, True])
def test_without_iterations_the_field_is_only_smoothed(features, smooth_field, compat):
    field = smooth_field(SIZE, 4.0)

    refined = AdamRefiner(2, 0, compat=compat)(*features, field)

    torch.testing.assert_close(refined, box_filter(field, (3, 3, 3), compat))


def test_without_a_field_it_starts_from_none(features):
    refiner = AdamRefiner(2, 3)

    torch.testing.assert_close(refiner(*features), refiner(*features, torch.zeros(2, 3, *SIZE)))


@pytest.mark.parametrize(("spacing", "expected"), [(2, (2, 2, 2)), ((3, 1, 2), (3, 1, 2))])
def test_its_grid_is_the_same_for_every_image(spacing, expected):
    assert AdamRefiner(spacing).spacing((100, 80, 3)) == expected


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
    pair = [pool_to_grid(MindSSC()(image), (2, 2, 2)) for image in (fixed, moving)]
    start = constant_field([1.5, 0, 0], pair[0].shape[2:])

    exact, reference = (
        interior(AdamRefiner(2, 120, 4.0, compat=compat)(*pair, start), 4).mean((0, 2, 3, 4))[0]
        for compat in (False, True)
    )

    assert exact == pytest.approx(1.5, abs=0.025)
    assert reference == pytest.approx(1.5 * 11 / 12, abs=0.05)  # (N - 1) / N with 12 cells


def test_compat_returns_the_field_before_the_last_step(features):
    start = torch.zeros(2, 3, *SIZE)

    def refined(steps, compat):
        return AdamRefiner(2, steps, compat=compat)(*features, start)

    assert torch.equal(refined(1, compat=True), refined(0, compat=True))
    assert refined(2, compat=True).abs().max() > 0.5
    assert refined(1, compat=False).abs().max() > 0.5


def test_compat_weighs_the_mean_over_channels_by_twelve_and_the_default_takes_their_sum(features):
    features = [pool_to_grid(part, (2, 2, 2)) for part in features]
    start = constant_field([0.15, -0.1, 0.05], features[0].shape[2:]).expand(2, -1, -1, -1, -1)
    four_times = [part.repeat(1, 4, 1, 1, 1) for part in features]

    def refined(pair, regularization, compat):
        return AdamRefiner(2, 8, regularization, compat=compat)(*pair, start)

    # rounding, which Adam blows up
    close = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(refined(four_times, 1.25, True), refined(features, 1.25, True), **close)
    torch.testing.assert_close(refined(four_times, 5.0, False), refined(features, 1.25, False), **close)
    assert (refined(four_times, 1.25, False) - refined(features, 1.25, False)).abs().max() > 0.1


@pytest.mark.parametrize("compat", [False, True])
def test_masks_without_an_outside_change_nothing(features, compat):
    start, ones = torch.zeros(2, 3, *SIZE), torch.ones(2, 1, *SIZE)
    refiner = AdamRefiner(2, 5, compat=compat)
    refined = refiner(*features, start)

    assert torch.equal(refiner(*features, start, fixed_mask=ones), refined)
    # the channel of zeros changes the order of the sums
    torch.testing.assert_close(refiner(*features, start, fixed_mask=ones, moving_mask=ones), refined, rtol=0, atol=1e-2)


def test_features_outside_the_fixed_mask_have_no_influence(features):
    fixed, moving = features
    mask = torch.zeros(2, 1, *SIZE)
    mask[0, :, 2:7, 5:, 3:9] = mask[1, :, :, :4, 6:] = 1
    refiner = AdamRefiner(2, 15)

    refined = refiner(fixed, moving, torch.zeros(2, 3, *SIZE), fixed_mask=mask)

    other = torch.where(mask > 0, fixed, torch.rand_like(fixed))
    assert torch.equal(refiner(other, moving, torch.zeros(2, 3, *SIZE), fixed_mask=mask), refined)
    assert (refiner(fixed, moving, torch.zeros(2, 3, *SIZE)) - refined).abs().max() > 0.5


def test_far_from_the_fixed_mask_the_field_goes_on_as_at_its_border(features):
    moving = features[1]
    mask = torch.zeros(2, 1, *SIZE)
    mask[:, :, :3] = 1
    shifted = torch.cat([moving[:, :, 1:], moving[:, :, -1:]], 2)

    refined = AdamRefiner(2, 200, 0.1, learning_rate=0.3)(shifted, moving, torch.zeros(2, 3, *SIZE), fixed_mask=mask)

    assert (refined[:, 0, :2] - 1).abs().mean() < 0.1
    assert (refined[:, 0, -1] - 1).abs().mean() < 0.25


@pytest.mark.parametrize(("penalty", "stays_inside"), [(1.0, True), (0.0, False)])
def test_a_place_inside_the_fixed_mask_does_not_leave_the_moving_mask_unpunished(penalty, stays_inside):
    # nothing to compare: only the masks can pull
    nothing = torch.zeros(1, 3, *SIZE)
    mask = torch.zeros(1, 1, *SIZE)
    mask[:, :, :8] = 1
    refiner = AdamRefiner(2, 60, 0.02, learning_rate=0.1, mask_penalty=penalty)

    refined = refiner(nothing, nothing, constant_field([0.8, 0.0, 0.0]), mask, mask)

    lands = 7 + refined[0, 0, 7]
    assert bool((lands < 7.3).all()) == stays_inside
    assert bool((lands > 7.7).all()) != stays_inside


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


def test_a_grid_of_one_layer_is_refined(features):
    slices = [part[..., :1] for part in features]

    refined = AdamRefiner(2, 3)(*slices, torch.zeros(2, 3, 12, 14, 1))

    assert refined.shape == (2, 3, 12, 14, 1)
    assert refined[:, :2].abs().max() > 0.5


def test_the_steps_are_those_of_plain_autograd_and_adam(features, smooth_field):
    # in double precision: in single precision Adam blows rounding up
    fixed, moving, start = (tensor.double() for tensor in (*features, smooth_field(SIZE, 2.0).repeat(2, 1, 1, 1, 1)))

    refined = AdamRefiner(1, 80, 1.25)(fixed, moving, start)

    control_values = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([control_values], lr=1.0)
    for _ in range(80):
        optimizer.zero_grad()
        # the batch's mean times its size: every item has an energy of its own
        (2 * double_energy(fixed, moving, box_filter(control_values, (3, 3, 3)), 1.25)).backward()
        optimizer.step()
    torch.testing.assert_close(refined, box_filter(control_values, (3, 3, 3)).detach(), rtol=0, atol=1e-9)


def test_the_compiled_steps_are_the_plain_ones(features, smooth_field, compiled, plain):
    start = smooth_field(SIZE, 2.0).repeat(2, 1, 1, 1, 1)

    fast, slow = (run(lambda: AdamRefiner(2, 4)(*features, start)) for run in (compiled, plain))

    assert (fast - slow).abs().flatten().quantile(0.99) < 1e-3


def test_two_runs_give_the_same_bits(features, smooth_field):
    start = smooth_field(SIZE, 2.0).repeat(2, 1, 1, 1, 1)

    assert torch.equal(AdamRefiner(2, 10)(*features, start), AdamRefiner(2, 10)(*features, start))


def test_it_stops_where_the_energy_stalls_and_only_if_asked(features, monkeypatch):
    steps = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *args: steps.append(1) or step(*args))
    start = torch.zeros(2, 3, *SIZE)

    def number_of_steps(tolerance):
        steps.clear()
        AdamRefiner(1, 200, learning_rate=0.3, tolerance=tolerance)(*features, start)
        return len(steps)

    assert number_of_steps(None) == 200
    assert number_of_steps(1.0) == 20
    assert 20 < number_of_steps(1e-3) < 200
