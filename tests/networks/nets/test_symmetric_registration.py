# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.metrics import compute_inverse_consistency
from monai_reg_ext.networks.blocks.adam_refiner import AdamRefiner
from monai_reg_ext.networks.blocks.coupled_convex_estimator import CoupledConvexEstimator
from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.inverse_consistency import make_inverse_consistent
from monai_reg_ext.networks.layers.upsample_ddf import regrid_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.networks.nets.registration_net import RegistrationNet

SIZE = (36, 30, 42)


def convex_adam(iterations=20, rounds=15, **settings):
    refiner = AdamRefiner(2, iterations) if iterations else None
    return RegistrationNet(MindSSC(), CoupledConvexEstimator(3, 2, rounds), refiner, **settings)


@pytest.fixture(scope="module")
def pair(shifted_pair, smooth_field):
    """Moving and fixed image, a shift and a smooth deformation apart."""
    moving, fixed = shifted_pair(SIZE, (4, -3, 2))
    return warp(moving, smooth_field(SIZE, 2.0)), fixed


class Stage(torch.nn.Module):
    """Stands in for an estimator or a refiner: what it gives depends on both sides and their order."""

    def __init__(self, grid_spacing):
        super().__init__()
        self.grid_spacing, self.calls = grid_spacing, []

    def spacing(self, size):
        return self.grid_spacing

    def forward(self, fixed, moving, coarse_ddf=0.0):
        self.calls.append((fixed, moving))
        return coarse_ddf + (2 * fixed - moving)[:, :3]


@pytest.mark.parametrize("passes", [1, 2])
def test_the_output_is_both_fields_one_behind_the_other(pair, passes):
    moving, fixed = pair
    net = convex_adam(3, symmetric=True, passes=passes)

    output = net(torch.cat([moving, fixed], 1))

    assert output.shape == (1, 6, *SIZE)
    assert torch.equal(output, torch.cat(net.register_both(moving, fixed), 1))
    assert torch.equal(net.register(moving, fixed), output[:, :3])


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("iterations", [0, 20])
def test_exchanging_fixed_and_moving_exchanges_the_fields(pair, iterations, passes):
    moving, fixed = pair
    net = convex_adam(iterations, symmetric=True, passes=passes, final_widths=(3,))
    masks = torch.ones(2, 1, 1, *SIZE)
    masks[0, ..., :9] = masks[1, :, :, 30:] = 0

    torch.testing.assert_close(net.register_both(fixed, moving), net.register_both(moving, fixed)[::-1])
    torch.testing.assert_close(
        net.register_both(fixed, moving, *masks), net.register_both(moving, fixed, *masks.flip(0))[::-1]
    )


@pytest.mark.parametrize("passes", [1, 2])
def test_there_and_back_is_far_closer_to_the_start_than_with_two_registrations(pair, passes):
    moving, fixed = pair
    net = convex_adam(40, passes=passes)

    symmetric = compute_inverse_consistency(*net.register_both(moving, fixed))
    separate = compute_inverse_consistency(net.register(moving, fixed), net.register(fixed, moving))

    assert (symmetric < 0.2 * separate).all()
    assert symmetric[0, 0] < 0.05


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("iterations", [0, 40])
def test_a_shift_is_found_in_both_directions(shifted_pair, interior, iterations, passes):
    shift = torch.tensor([3.0, -6, 3]).view(1, 3, 1, 1, 1)
    moving, fixed = shifted_pair((37, 40, 44), (3, -6, 3))

    ddf, inverse_ddf = convex_adam(iterations, passes=passes).register_both(moving, fixed)

    tolerance = 0.2 if iterations else 1e-3
    assert (interior(ddf, 17) - shift).abs().max() < tolerance
    assert (interior(inverse_ddf, 17) + shift).abs().max() < tolerance


def test_each_field_warps_the_one_image_onto_the_other(pair, interior):
    moving, fixed = pair

    ddf, inverse_ddf = convex_adam(40).register_both(moving, fixed)

    before = interior(moving - fixed, 6).abs().mean()
    assert interior(warp(moving, ddf) - fixed, 6).abs().mean() < 0.3 * before
    assert interior(warp(fixed, inverse_ddf) - moving, 6).abs().mean() < 0.3 * before


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("refined", [False, True])
def test_any_estimator_and_refiner_are_run_in_both_directions(pair, refined, compat):
    moving, fixed = pair
    estimator, refiner = Stage((3, 2, 4)), Stage((3, 2, 4)) if refined else None
    settings = {"final_widths": (3, 5), "compat": compat}

    fields = RegistrationNet(MindSSC(), estimator, refiner, consistency=2, **settings).register_both(moving, fixed)

    of_fixed, of_moving = estimator.calls[0]
    for stage in (estimator, refiner) if refined else (estimator,):
        assert all(one is other for one, other in zip(stage.calls[0], (of_fixed, of_moving), strict=True))
        assert all(one is other for one, other in zip(stage.calls[1], (of_moving, of_fixed), strict=True))
        assert len(stage.calls) == 2
    coarse = [(2 * of_fixed - of_moving)[:, :3], (2 * of_moving - of_fixed)[:, :3]]
    if refined:
        # a change of grids, also to the same one, smooths
        coarse = [regrid_ddf(field, (3, 2, 4), (3, 2, 4), SIZE, compat) + field for field in coarse]
    for field, expected in zip(fields, make_inverse_consistent(*coarse, 2, compat), strict=True):
        at_full_size = box_filter(upsample_ddf(expected, (3, 2, 4), SIZE, compat), (3, 5), compat)
        torch.testing.assert_close(field, at_full_size, rtol=1e-4, atol=1e-4)


def test_without_rounds_each_field_is_that_of_its_own_registration(pair):
    moving, fixed = pair
    net = convex_adam(5, consistency=0)

    ddf, inverse_ddf = net.register_both(moving, fixed)

    torch.testing.assert_close(ddf, net.register(moving, fixed), rtol=0, atol=1e-2)
    torch.testing.assert_close(inverse_ddf, net.register(fixed, moving), rtol=0, atol=1e-2)


def test_the_second_pass_registers_each_warped_image_and_brings_both_together(pair):
    moving, fixed = pair
    net = convex_adam(0, passes=2)
    one_pass = convex_adam(0)

    fields = net.register_both(moving, fixed)

    ddf, inverse_ddf = one_pass.register_both(moving, fixed)
    ddf = compose_ddf(ddf, one_pass.register(warp(moving, ddf), fixed))
    inverse_ddf = compose_ddf(inverse_ddf, one_pass.register(warp(fixed, inverse_ddf), moving))
    torch.testing.assert_close(fields, make_inverse_consistent(ddf, inverse_ddf, 5))


def test_both_directions_take_the_features_of_each_image_once_and_one_search(pair, monkeypatch):
    moving, fixed = pair
    seen, searches = [], []

    class Counted(FeatureBlock):
        def forward(self, image):
            seen.append(image)
            return MindSSC()(image)

    search = CoupledConvexEstimator._search
    monkeypatch.setattr(
        CoupledConvexEstimator, "_search", lambda *args, **options: searches.append(1) or search(*args, **options)
    )

    RegistrationNet(Counted(), CoupledConvexEstimator(3, 2), AdamRefiner(2, 1)).register_both(moving, fixed)

    assert len(seen) == 2
    assert len(searches) == 1


def test_pairs_of_a_batch_do_not_see_each_other(pair):
    moving, fixed = pair
    net = convex_adam(0, symmetric=True)

    output = net(torch.cat([torch.cat([moving, fixed], 1), torch.cat([fixed, moving], 1)]))

    torch.testing.assert_close(output[1:], output[:1].roll(3, 1))
