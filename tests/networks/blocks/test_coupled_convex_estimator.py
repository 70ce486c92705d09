# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.coupled_convex_estimator import CoupledConvexEstimator
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.coupled_convex import coupled_convex
from monai_reg_ext.networks.layers.inverse_consistency import make_inverse_consistent
from monai_reg_ext.networks.layers.mask_channel import add_mask_channel
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.residual_covariance import residual_covariance
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume
from monai_reg_ext.networks.layers.warp import warp


def features_of(*images, spacing, compat=False):
    return [pool_to_grid(MindSSC()(image), spacing, compat) for image in images]


def as_field(cells):
    return torch.tensor(cells, dtype=torch.float32).view(-1, 3, 1, 1, 1)


@pytest.mark.parametrize(("rounds", "expected"), [(15, "consistent_fwd"), (0, "displacement_fwd")])
def test_golden_field_with_and_without_inverse_consistency(golden_convex, rounds, expected):
    estimator = CoupledConvexEstimator(1, golden_convex["half_width"], rounds, compat=True)

    coarse_ddf = estimator(golden_convex["fixed"], golden_convex["moving"])

    torch.testing.assert_close(coarse_ddf, golden_convex[expected], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rounds", [0, 15])
@pytest.mark.parametrize(
    ("size", "spacing", "cells"),
    [
        ((36, 39, 42), (3, 3, 3), (1, -2, 1)),
        ((37, 40, 44), (3, 3, 4), (-2, 0, 1)),
        ((41, 35, 45), (3, 2, 4), (-2, 1, 2)),
    ],
)
def test_whole_cells_are_recovered_inside_for_any_size(shifted_pair, interior, rounds, size, spacing, cells):
    moving, fixed = shifted_pair(size, [count * step for count, step in zip(cells, spacing, strict=True)])

    coarse_ddf = CoupledConvexEstimator(spacing, 2, rounds)(*features_of(fixed, moving, spacing=spacing))

    assert coarse_ddf.shape[2:] == tuple(-(-extent // step) for extent, step in zip(size, spacing, strict=True))
    # two cells have left the image, and three boxes of radius 1 carry that further in
    assert (interior(coarse_ddf, 5) - as_field(cells)).abs().max() < 1e-4


def test_items_of_a_batch_are_estimated_independently(shifted_pair, interior):
    shifts = [(2, -4, 0), (0, 4, -2)]
    moving, fixed = (torch.cat(views) for views in zip(*(shifted_pair((26, 24, 22), s) for s in shifts), strict=True))
    fixed, moving = features_of(fixed, moving, spacing=(2, 2, 2))
    estimator = CoupledConvexEstimator(2, 2)

    coarse_ddf = estimator(fixed, moving)

    for item in range(2):
        alone = estimator(fixed[item : item + 1], moving[item : item + 1])
        torch.testing.assert_close(coarse_ddf[item : item + 1], alone)
    assert (interior(coarse_ddf, 5) - as_field(shifts) / 2).abs().max() < 1e-4


def test_a_displacement_reaches_the_border_that_compat_shrinks(shifted_pair):
    moving, fixed = shifted_pair((24, 28, 32), (4, 0, -4))
    features = features_of(fixed, moving, spacing=(4, 4, 4))

    exact, reference = (CoupledConvexEstimator(4, 2, 0, compat=compat)(*features) for compat in (False, True))

    # the near face of axis 0 comes from inside the moving image, in the middle of the other axes
    first_cells = (0, 0, 0, slice(2, 5), slice(3, 6))
    assert (exact[first_cells] - 1).abs().max() < 0.1
    assert (reference[first_cells] - 2 / 3).abs().max() < 0.1


@pytest.mark.parametrize("rounds", [0, 15])
def test_identical_and_constant_features_do_not_move(texture, rounds):
    estimator = CoupledConvexEstimator(3, 2, rounds)
    (textured,) = features_of(texture((17, 20, 15)), spacing=(3, 3, 3))
    constant = torch.ones(1, 12, 6, 7, 5)

    assert torch.equal(estimator(textured, textured), torch.zeros(1, 3, 6, 7, 5))
    assert torch.equal(estimator(constant, constant), torch.zeros(1, 3, 6, 7, 5))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("rounds", [0, 15])
def test_flipped_features_give_the_flipped_field(axis, rounds):
    fixed, moving = torch.randn(2, 1, 4, 6, 4, 10)
    estimator = CoupledConvexEstimator(half_width=(2, 1, 2), inverse_consistency=rounds)

    flipped_back = estimator(fixed.flip(2 + axis), moving.flip(2 + axis)).flip(2 + axis)

    flipped_back[:, axis] *= -1
    torch.testing.assert_close(flipped_back, estimator(fixed, moving), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("sharpness", [None, 20.0])
@pytest.mark.parametrize("compat", [False, True])
def test_masks_of_ones_change_nothing(compat, sharpness, rounds):
    fixed, moving = torch.randn(2, 2, 4, 7, 5, 6)
    ones = torch.ones(2, 1, 7, 5, 6)
    estimator = CoupledConvexEstimator(2, 2, rounds, sharpness=sharpness, compat=compat)

    coarse_ddf = estimator(fixed, moving, ones, ones)

    torch.testing.assert_close(coarse_ddf, estimator(fixed, moving), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rounds", [0, 15])
def test_features_outside_both_masks_have_no_influence_on_the_field(rounds):
    # five cells apart: no place inside the one mask reaches the surroundings of the other
    fixed, moving = torch.randn(2, 1, 4, 14, 11, 12)
    masks = torch.zeros(2, 1, 1, 14, 11, 12)
    masks[0, ..., 3:8, 4:8, 2:9] = masks[1, ..., 4:9, 3:7, 3:10] = 1
    estimator = CoupledConvexEstimator(2, 1, rounds, mask_penalty=1e6)

    coarse_ddf = estimator(fixed, moving, *masks)

    other = [
        torch.where(mask > 0, side, torch.randn_like(side)) for mask, side in zip(masks, (fixed, moving), strict=True)
    ]
    torch.testing.assert_close(estimator(*other, *masks), coarse_ddf)
    assert (estimator(*other) - estimator(fixed, moving)).abs().max() > 0.5


def test_the_masks_alone_bring_the_inside_to_the_inside():
    nothing = torch.zeros(1, 4, 14, 12, 13)
    fixed_mask, moving_mask = torch.zeros(2, 1, 1, 14, 12, 13)
    fixed_mask[..., 2:8, 4:9, 3:10] = moving_mask[..., 4:10, 3:8, 3:10] = 1

    kept, free = (
        warp(
            moving_mask,
            CoupledConvexEstimator(2, 3, 0, mask_penalty=penalty)(nothing, nothing, fixed_mask, moving_mask),
        )
        for penalty in (4.0, 0.0)
    )

    assert kept[fixed_mask > 0].mean() > 0.9
    torch.testing.assert_close(free, moving_mask)


@pytest.mark.parametrize("compat", [False, True])
def test_beyond_the_fixed_mask_the_field_goes_on_as_at_its_border(shifted_pair, compat):
    moving, fixed = shifted_pair((36, 26, 30), (4, 0, -2))
    fixed, moving = features_of(fixed, moving, spacing=(2, 2, 2))
    mask = torch.zeros(1, 1, 18, 13, 15)
    mask[:, :, 2:9] = 1

    coarse_ddf = CoupledConvexEstimator(2, 2, 0, compat=compat)(fixed, moving, mask)

    assert (coarse_ddf[..., 2:-2, 5:-5, 6:-6] - as_field((2, 0, -1))).abs().max() < 1e-4


@pytest.mark.parametrize("given", ["fixed_mask", "moving_mask"])
def test_one_mask_alone_is_that_and_one_of_ones(given):
    fixed, moving = torch.randn(2, 1, 4, 7, 5, 6)
    masks = {"fixed_mask": torch.ones(1, 1, 7, 5, 6), "moving_mask": torch.ones(1, 1, 7, 5, 6)}
    masks[given][..., 3:] = 0
    estimator = CoupledConvexEstimator(2, 2)

    assert torch.equal(estimator(fixed, moving, **{given: masks[given]}), estimator(fixed, moving, **masks))


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("rounds", [0, 4])
@pytest.mark.parametrize("compat", [False, True])
def test_both_fields_change_places_with_fixed_and_moving(with_masks, rounds, compat):
    fixed, moving = torch.randn(2, 2, 4, 7, 5, 6)
    masks = list((torch.rand(2, 2, 1, 7, 5, 6) > 0.3).float()) if with_masks else []
    estimator = CoupledConvexEstimator(2, 2, rounds, compat=compat)

    forward, backward = estimator.both(fixed, moving, *masks)

    swapped = estimator.both(moving, fixed, *reversed(masks))
    torch.testing.assert_close(swapped, (backward, forward), rtol=0, atol=1e-5)
    if rounds:
        assert torch.equal(estimator(fixed, moving, *masks), forward)
    else:
        torch.testing.assert_close(estimator(fixed, moving, *masks), forward)


def test_inverse_consistency_brings_both_directions_together():
    fixed, moving = torch.randn(2, 1, 4, 6, 8, 10) / 2

    def residual(rounds):
        estimator = CoupledConvexEstimator(half_width=2, inverse_consistency=rounds)
        return compose_ddf(estimator(moving, fixed), estimator(fixed, moving)).abs().mean()

    assert residual(15) < residual(0) / 5


@pytest.mark.parametrize(
    ("size", "spacing"),
    # the last two lie on either side of 2.5 * 35 voxels
    [
        ((64, 64, 64), 2),
        ((40, 30, 35), 2),
        ((160, 192, 160), 5),
        ((200, 200, 200), 6),
        ((512, 512, 300), 6),
        ((87, 87, 87), 2),
        ((88, 88, 88), 3),
    ],
)
def test_without_a_spacing_the_size_decides(size, spacing):
    assert CoupledConvexEstimator().spacing(size) == (spacing,) * 3


@pytest.mark.parametrize("spacing", [3, (2, 4, 3)])
def test_a_given_spacing_does_not_depend_on_the_size(spacing):
    estimator = CoupledConvexEstimator(spacing)

    assert estimator.spacing((64, 20, 31)) == estimator.spacing((512, 512, 300))
    assert estimator.spacing((64, 20, 31)) == ((3, 3, 3) if spacing == 3 else spacing)


@pytest.mark.parametrize("half_width", [4, (5, 1, 1), (1, 4, 1), (1, 1, 6)])
def test_a_window_beyond_the_control_grid_is_refused(half_width):
    features = torch.zeros(1, 2, 5, 4, 6)

    with pytest.raises(
        ValueError, match=r"half_width=\(.*\) reaches beyond a control grid of \(5, 4, 6\) cells\. Choose a"
    ):
        CoupledConvexEstimator(2, half_width)(features, features)


def test_the_largest_window_that_fits_is_searched():
    features = torch.randn(1, 2, 5, 4, 6)

    assert torch.equal(CoupledConvexEstimator(4, (4, 3, 5))(features, features), torch.zeros(1, 3, 5, 4, 6))


def test_a_single_slice_is_searched_in_its_plane(shifted_pair):
    moving, fixed = (image[..., :1] for image in shifted_pair((28, 24, 1), (4, -2, 0)))

    coarse_ddf = CoupledConvexEstimator(2, (2, 2, 0))(*features_of(fixed, moving, spacing=(2, 2, 4)))

    assert coarse_ddf.shape == (1, 3, 14, 12, 1)
    assert (coarse_ddf[..., 5:-5, 5:-5, :] - as_field((2, -1, 0))).abs().max() < 1e-4


@pytest.mark.parametrize("sharpness", [None, 20.0])
@pytest.mark.parametrize("compat", [False, True])
def test_both_directions_are_those_of_two_searches(compat, sharpness):
    fixed, moving = torch.randn(2, 2, 4, 7, 5, 6)

    coarse_ddf = CoupledConvexEstimator(half_width=2, sharpness=sharpness, compat=compat)(fixed, moving)

    forward, backward = (
        coupled_convex(SSDCostVolume(*pair, (2, 2, 2), compat=compat), sharpness=sharpness, compat=compat)
        for pair in ((fixed, moving), (moving, fixed))
    )
    torch.testing.assert_close(coarse_ddf, make_inverse_consistent(forward, backward, compat=compat)[0])


def test_the_ties_of_compat_go_to_the_lowest_label_in_both_directions():
    # without texture all displacements tie: the lowest of each direction is one cell back along every axis
    nothing = torch.zeros(1, 2, 9, 8, 7)

    coarse_ddf = CoupledConvexEstimator(half_width=1, couplings=(), inverse_consistency=1, compat=True)(
        nothing, nothing
    )

    # a <- (a - b(x + a)) / 2 of two equal fields
    assert coarse_ddf[..., 4, 4, 3].abs().max() < 1e-6
    forward = CoupledConvexEstimator(half_width=1, couplings=(), inverse_consistency=0, compat=True)(nothing, nothing)
    assert forward[0, :, 4, 4, 3].tolist() == pytest.approx([-1, -1, -1])


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("sharpness", [None, 20.0])
def test_in_little_memory_the_same_field_is_computed_anew_for_each_coupling(monkeypatch, sharpness, rounds):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: 10_000)
    fixed, moving = torch.randn(2, 1, 4, 7, 5, 6)
    computed = []
    compute = SSDCostVolume.compute
    monkeypatch.setattr(
        SSDCostVolume, "compute", lambda *args, **options: computed.append(args) or compute(*args, **options)
    )

    def field_and_chunks(memory):
        computed.clear()
        estimator = CoupledConvexEstimator(2, 2, rounds, sharpness=sharpness, memory=memory)
        return estimator(fixed, moving), len(computed)

    (kept, once), (streamed, anew) = field_and_chunks(None), field_and_chunks(0)

    assert anew == 7 * once  # six couplings and the search before them
    assert torch.equal(kept, streamed)


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("smooth_widths", [(), (3,), (5, 3)])
def test_the_costs_are_smoothed_as_asked(rounds, smooth_widths):
    features = torch.rand(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(0)).split(1)
    estimator = CoupledConvexEstimator(1, 2, rounds, smooth_widths=smooth_widths)

    def field(fixed, moving):
        return coupled_convex(SSDCostVolume(fixed, moving, (2, 2, 2), smooth_widths))

    expected = field(*features)
    if rounds:
        expected, _ = make_inverse_consistent(expected, field(*reversed(features)), rounds)
    torch.testing.assert_close(estimator(*features), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(CoupledConvexEstimator(1, 2, rounds)(*features), expected, atol=1e-2)


def test_the_covariance_does_not_depend_on_how_the_search_smooths():
    features = torch.rand(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(0)).split(1)
    torch.testing.assert_close(
        CoupledConvexEstimator(1, 2, smooth_widths=(3,)).covariance(*features),
        CoupledConvexEstimator(1, 2).covariance(*features),
    )


def test_features_are_learned_through_the_expected_displacement(shifted_pair):
    moving, fixed = shifted_pair((16, 14, 18), (2, 0, -2))
    features = torch.nn.Conv3d(1, 6, 3, padding=1)
    estimator = CoupledConvexEstimator(2, 2, 2, couplings=(0.01, 0.1), sharpness=10.0)
    optimizer = torch.optim.Adam(features.parameters(), lr=0.01)

    def loss():
        pooled = [pool_to_grid(features(image), (2, 2, 2)) for image in (fixed, moving)]
        return (estimator(*pooled)[..., 2:-2, 2:-2, 2:-2] - as_field((1, 0, -1))).square().mean()

    before = loss()
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    assert loss() < before / 2


DIAGONAL = [0, 3, 5]


def test_the_covariance_is_that_of_what_is_left_in_the_window():
    fixed, moving = torch.randn(2, 1, 4, 7, 5, 6)
    estimator = CoupledConvexEstimator(2, (2, 1, 3))

    covariance = estimator.covariance(fixed, moving)

    assert torch.equal(covariance, residual_covariance(SSDCostVolume(fixed, moving, (2, 1, 3))))


def test_with_masks_the_covariance_goes_on_beyond_the_fixed_one():
    fixed, moving = torch.randn(2, 1, 4, 14, 11, 12)
    masks = torch.zeros(2, 1, 1, 14, 11, 12)
    masks[0, ..., 3:8, 4:8, 2:9] = masks[1, ..., 4:9, 3:7, 3:10] = 1

    covariance = CoupledConvexEstimator(2, 1).covariance(fixed, moving, True, *masks)

    volume = SSDCostVolume(*add_mask_channel(fixed, moving, *masks, 4.0), (1, 1, 1), fixed_mask=masks[0])
    assert torch.equal(covariance, residual_covariance(volume, masks[0]))


def test_a_field_that_no_refiner_polished_has_the_rounding_to_cells_besides():
    fixed, moving = torch.randn(2, 1, 4, 7, 5, 6)
    estimator = CoupledConvexEstimator(2, 2)

    rounding = estimator.covariance(fixed, moving, refined=False) - estimator.covariance(fixed, moving)

    # of 1/12, the variance of what rounding takes off, the smoothing leaves a third
    torch.testing.assert_close(rounding[:, DIAGONAL], torch.full((1, 3, 7, 5, 6), 1 / 36))
    assert not rounding[:, [1, 2, 4]].any()


@pytest.mark.parametrize("with_masks", [False, True])
def test_items_of_a_batch_have_the_covariance_that_they_have_alone(with_masks):
    fixed, moving = torch.randn(2, 2, 4, 7, 5, 6)
    fixed[1] *= 3  # another scale
    masks = [(torch.rand(2, 1, 7, 5, 6) > 0.3).float() for _ in range(2)] if with_masks else []
    estimator = CoupledConvexEstimator(2, 2)

    covariance = estimator.covariance(fixed, moving, True, *masks)

    for item in range(2):
        one = slice(item, item + 1)
        alone = estimator.covariance(fixed[one], moving[one], True, *(mask[one] for mask in masks))
        torch.testing.assert_close(covariance[one], alone)


def test_features_outside_both_masks_have_no_influence_on_the_covariance():
    fixed, moving = torch.randn(2, 1, 4, 14, 11, 12)
    masks = torch.zeros(2, 1, 1, 14, 11, 12)
    masks[0, ..., 3:8, 4:8, 2:9] = masks[1, ..., 4:9, 3:7, 3:10] = 1
    estimator = CoupledConvexEstimator(2, 1, mask_penalty=1e4)

    covariance = estimator.covariance(fixed, moving, True, *masks)

    other = [
        torch.where(mask > 0, side, torch.randn_like(side)) for mask, side in zip(masks, (fixed, moving), strict=True)
    ]
    inside = masks[0].bool().expand(1, 6, -1, -1, -1)
    torch.testing.assert_close(
        estimator.covariance(*other, True, *masks)[inside], covariance[inside], rtol=1e-3, atol=1e-4
    )
    assert (estimator.covariance(*other) / estimator.covariance(fixed, moving) - 1)[inside].abs().max() > 0.1


def test_the_covariance_of_flipped_features_is_flipped():
    fixed = torch.randn(1, 4, 6, 7, 10)
    moving = fixed + 0.5 * torch.randn_like(fixed)
    estimator = CoupledConvexEstimator(half_width=(2, 1, 2))

    flipped_back = estimator.covariance(fixed.flip(3), moving.flip(3)).flip(3)

    flipped_back[:, [1, 4]] *= -1  # one of whose two axes is the flipped one
    torch.testing.assert_close(flipped_back, estimator.covariance(fixed, moving), rtol=1e-4, atol=1e-6)


def test_a_window_beyond_the_control_grid_has_no_covariance_either():
    with pytest.raises(ValueError, match="reaches beyond a control grid"):
        CoupledConvexEstimator(2, (1, 4, 1)).covariance(torch.zeros(1, 2, 5, 4, 6), torch.zeros(1, 2, 5, 4, 6))
