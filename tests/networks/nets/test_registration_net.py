# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from monai_reg_ext.networks.blocks.adam_refiner import AdamRefiner
from monai_reg_ext.networks.blocks.coupled_convex_estimator import CoupledConvexEstimator
from monai_reg_ext.networks.blocks.feature_stack import FeatureStack
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.blocks.semantic_features import SemanticFeatures
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.networks.nets.registration_net import RegistrationNet

SIZE = (36, 30, 42)


def convex_adam(spacing=3, half_width=2, iterations=10, features=None, inverse_consistency=15, passes=1):
    """The method at test size; without iterations, its convex stage alone."""
    refiner = AdamRefiner(2, iterations) if iterations else None
    estimator = CoupledConvexEstimator(spacing, half_width, inverse_consistency)
    return RegistrationNet(features or MindSSC(), estimator, refiner, passes)


def as_field(shift):
    return torch.tensor(shift, dtype=torch.float32).view(-1, 3, 1, 1, 1)


def label_map(image):
    """Four labels, not contiguous, by intensity."""
    return torch.tensor([0.0, 2, 5, 11])[torch.bucketize(image, torch.tensor([-0.8, 0.0, 0.9]))]


class Stage(torch.nn.Module):
    """Stands in for an estimator or a refiner: adds ``step`` cells to the field and remembers what it was given."""

    def __init__(self, grid_spacing, step=0.0):
        super().__init__()
        self.grid_spacing, self.step = grid_spacing, step

    def spacing(self, size):
        return self.grid_spacing

    def forward(self, fixed, moving, coarse_ddf=0.0):
        self.given = fixed, moving, coarse_ddf
        # every cell moves by another distance
        ramp = torch.linspace(0, 1, fixed[0, 0].numel()).view(1, 1, *fixed.shape[2:]).expand(len(fixed), 3, -1, -1, -1)
        return coarse_ddf + self.step * ramp


@pytest.fixture(scope="module")
def pair(shifted_pair, smooth_field):
    """Moving and fixed image side by side, a shift and a smooth deformation apart."""
    moving, fixed = shifted_pair(SIZE, (4, -3, 2))
    return torch.cat([warp(moving, smooth_field(SIZE, 2.0)), fixed], 1)


@pytest.mark.parametrize("inverse_consistency", [0, 15])
def test_whole_cells_are_recovered_in_voxels_at_full_size(shifted_pair, interior, inverse_consistency):
    moving, fixed = shifted_pair((37, 40, 44), (3, -6, 3))

    ddf = convex_adam(iterations=0, inverse_consistency=inverse_consistency)(torch.cat([moving, fixed], 1))

    assert ddf.shape == (1, 3, 37, 40, 44)
    assert (interior(ddf, 17) - as_field((3, -6, 3))).abs().max() < 1e-3


def test_any_shifts_in_a_batch_of_any_size_are_recovered(shifted_pair, interior):
    shifts = [(4, 5, -2), (-5, 0, 3)]
    pairs = [shifted_pair((41, 39, 43), shift, seed) for seed, shift in enumerate(shifts)]

    ddf = convex_adam(half_width=3, iterations=40)(torch.cat([torch.cat(pair, 1) for pair in pairs]))

    assert (interior(ddf, 12) - as_field(shifts)).abs().max() < 0.3
    assert (interior(ddf, 12) - as_field(shifts)).abs().mean() < 0.1


def test_the_warped_image_is_nearer_to_the_fixed_one(pair, interior):
    moving, fixed = pair.chunk(2, 1)

    ddf = convex_adam(iterations=30)(pair)

    def difference(image):
        return interior(image - fixed, 6).abs().mean()

    assert difference(warp(moving, ddf)) < 0.3 * difference(moving)


def test_an_identical_pair_stays_where_it_is(texture):
    image = texture((30, 26, 34))
    identical = torch.cat([image, image], 1)

    assert torch.equal(convex_adam(iterations=0)(identical), torch.zeros(1, 3, 30, 26, 34))
    # Adam's first steps have full length however small the gradient is; they have to die away
    assert convex_adam(iterations=120)(identical).abs().max() < 0.1


@pytest.mark.parametrize("inverse_consistency", [0, 15])
def test_constant_images_give_a_zero_field(inverse_consistency):
    constant = torch.cat([torch.full((1, 1, 20, 18, 22), value) for value in (3.0, -7.0)], 1)

    ddf = convex_adam(inverse_consistency=inverse_consistency)(constant)

    assert torch.equal(ddf, torch.zeros(1, 3, 20, 18, 22))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_pair_gives_the_flipped_field(pair, axis):
    net = convex_adam()

    flipped_back = net(pair.flip(2 + axis)).flip(2 + axis)

    flipped_back[:, axis] *= -1
    torch.testing.assert_close(flipped_back, net(pair), rtol=0, atol=1e-2)  # Adam blows up rounding
    assert net(pair).abs().mean() > 1


def test_the_contrast_of_one_image_does_not_matter(pair):
    moving, fixed = pair.chunk(2, 1)

    ddf = convex_adam()(torch.cat([5 - 3 * moving, fixed], 1))

    torch.testing.assert_close(ddf, convex_adam()(pair), rtol=0, atol=1e-2)


def test_pairs_of_a_batch_do_not_see_each_other(pair):
    moving, fixed = pair.chunk(2, 1)
    swapped = torch.cat([1000 * fixed, moving], 1)

    ddf = convex_adam()(torch.cat([pair, swapped]))

    torch.testing.assert_close(ddf[:1], convex_adam()(pair), rtol=0, atol=1e-2)
    torch.testing.assert_close(ddf[1:], convex_adam()(swapped), rtol=0, atol=1e-2)


def test_the_pair_may_come_as_one_tensor_or_as_two(pair):
    moving, fixed = pair.chunk(2, 1)

    assert torch.equal(convex_adam().register(moving, fixed), convex_adam()(pair))


def test_the_second_pass_registers_the_warped_image_and_is_composed(pair):
    moving, fixed = pair.chunk(2, 1)
    net = convex_adam()

    ddf = convex_adam(passes=2)(pair)

    first = net.register(moving, fixed)
    second = net.register(warp(moving, first), fixed)
    torch.testing.assert_close(ddf, compose_ddf(first, second))
    assert second.abs().max() > 0.1


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_every_stage_gets_the_features_of_its_own_grid(pair, plain, compat):
    moving, fixed = pair[..., :31].chunk(2, 1)
    mind = MindSSC()
    features = torch.nn.Sequential(mind) if plain else mind
    estimator, refiner = Stage((5, 4, 6)), Stage((2, 4, 3))

    RegistrationNet(features, estimator, refiner, compat=compat).register(moving, fixed)

    for stage in (estimator, refiner):
        for given, image in zip(stage.given[:2], (fixed, moving), strict=True):
            torch.testing.assert_close(given, pool_to_grid(mind(image), stage.grid_spacing, compat), rtol=0, atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_the_field_goes_from_the_estimators_grid_to_the_refiners_and_to_the_voxels(pair, compat):
    estimator, refiner = Stage((5, 4, 6), 3.0), Stage((2, 3, 4), -1.0)

    ddf = RegistrationNet(MindSSC(), estimator, refiner, compat=compat)(pair)

    estimate = upsample_ddf(estimator(*estimator.given[:2]), (5, 4, 6), SIZE, compat)
    start = downsample_ddf(estimate, (2, 3, 4), compat)
    torch.testing.assert_close(refiner.given[2], start, rtol=0, atol=1e-5)
    refined = refiner(*refiner.given[:2], start)
    torch.testing.assert_close(ddf, upsample_ddf(refined, (2, 3, 4), SIZE, compat), rtol=0, atol=1e-4)


def test_without_a_refiner_the_field_is_the_estimate_at_full_size(pair):
    estimator = Stage((3, 4, 2), 2.0)

    ddf = RegistrationNet(MindSSC(), estimator)(pair)

    torch.testing.assert_close(ddf, upsample_ddf(estimator(*estimator.given[:2]), (3, 4, 2), SIZE))


def test_stages_of_half_precision_are_joined_in_float32(pair):
    class Half(Stage):
        def forward(self, *given):
            return super().forward(*given).half()

    refiner = Half((3, 4, 2))

    assert RegistrationNet(MindSSC(), Half((5, 4, 6)))(pair).dtype == torch.float32
    assert RegistrationNet(MindSSC(), Half((5, 4, 6)), refiner)(pair).dtype == torch.float32
    assert refiner.given[2].dtype == torch.float32


def test_stages_on_one_grid_share_their_features(pair):
    estimator, refiner = Stage((3, 4, 2)), Stage([3, 4, 2])

    RegistrationNet(MindSSC(), estimator, refiner)(pair)

    assert all(one is other for one, other in zip(estimator.given[:2], refiner.given[:2], strict=True))


def test_features_that_depend_on_both_images_see_both(pair):
    moving, fixed = (label_map(image) for image in pair.chunk(2, 1))
    moving[moving == 11] = 0
    estimator, refiner = Stage((5, 4, 6)), Stage((2, 3, 4))

    RegistrationNet(SemanticFeatures(), estimator, refiner).register(moving, fixed)

    of_fixed, of_moving = SemanticFeatures().pooled_pair(fixed, moving, [(5, 4, 6), (2, 3, 4)])
    for stage, *expected in zip((estimator, refiner), of_fixed, of_moving, strict=True):
        torch.testing.assert_close(list(stage.given[:2]), expected)


@pytest.mark.parametrize("compat", [False, True])
def test_final_boxes_smooth_the_field_of_each_pass_at_full_resolution(pair, compat):
    estimator = Stage((3, 4, 2), 2.0)

    smoothed, twice = (
        RegistrationNet(MindSSC(), estimator, passes=passes, final_widths=[5, 3], compat=compat)(pair)
        for passes in (1, 2)
    )

    expected = box_filter(RegistrationNet(MindSSC(), estimator, compat=compat)(pair), (5, 3), compat)
    torch.testing.assert_close(smoothed, expected)
    torch.testing.assert_close(twice, compose_ddf(expected, expected))


def test_features_learn_through_the_estimate_at_full_size(pair):
    class Mean(Stage):
        def forward(self, fixed, moving):
            return (fixed - moving).mean(1, keepdim=True).expand(-1, 3, -1, -1, -1)

    features = torch.nn.Conv3d(1, 2, 3, padding=1)

    RegistrationNet(features, Mean((3, 4, 2)))(pair).square().sum().backward()

    assert features.weight.grad.abs().max() > 0


def test_no_descriptors_of_all_voxels_are_held(pair, largest_tensor, thin_slabs):
    with largest_tensor() as largest:
        RegistrationNet(MindSSC(), Stage((6, 6, 6)), Stage((2, 2, 2)))(pair)

    assert largest.values <= 3 * np.prod(SIZE)  # the field


@pytest.mark.parametrize("features", [SemanticFeatures(), FeatureStack([MindSSC(), SemanticFeatures()])])
def test_labels_alone_or_with_the_scan_are_registered(shifted_pair, interior, features):
    moving, fixed = shifted_pair((37, 40, 44), (3, -6, 3))
    if isinstance(features, FeatureStack):
        channels = [moving, label_map(moving), fixed, label_map(fixed)]
    else:
        channels = [label_map(moving), label_map(fixed)]

    ddf = convex_adam(features=features, iterations=0)(torch.cat(channels, 1))

    assert (interior(ddf, 15) - as_field((3, -6, 3))).abs().max() < 1e-3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_field_is_the_same_where_gradients_are_off(pair, mode):
    with mode():
        ddf = convex_adam()(pair)

    assert torch.equal(ddf, convex_adam()(pair))


def test_mixed_precision_and_other_types_of_image_give_the_same_float32_field(pair):
    ddf = convex_adam()(pair)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(convex_adam()(pair), ddf)
    assert torch.equal(convex_adam()(pair.double()), ddf)
    whole = (100 * pair).round()
    assert torch.equal(convex_adam()(whole.to(torch.int16)), convex_adam()(whole))
    assert ddf.dtype == torch.float32


def test_images_may_carry_metadata(pair):
    ddf = torch.as_tensor(convex_adam()(MetaTensor(pair)))

    assert torch.equal(ddf, convex_adam()(pair))


def convex_adam_as_published(iterations):
    refiner = AdamRefiner(2, iterations, 1.25, compat=True) if iterations else None
    return RegistrationNet(MindSSC(1, 2, compat=True), CoupledConvexEstimator(6, 4, compat=True), refiner, compat=True)


@pytest.mark.parametrize(
    ("iterations", "mean_tolerance", "max_tolerance"),
    [
        (0, 1e-5, 1e-4),
        # Adam's first steps have full length even where the gradient is only rounding: 1e-6 grows to 1e-4 and more
        (10, 1e-3, 0.05),
    ],
)
@pytest.mark.parametrize("size", [(48, 42, 54), (50, 45, 56)])
@pytest.mark.filterwarnings("ignore:Default grid_sample")
def test_compat_is_the_published_convex_adam(
    shifted_pair, smooth_field, size, iterations, mean_tolerance, max_tolerance
):
    published = pytest.importorskip("convexAdam.convex_adam_MIND")
    moving, fixed = shifted_pair(size, (6, -5, 4))
    moving = warp(moving, smooth_field(size, 3.0, 5.0))

    ddf = convex_adam_as_published(iterations).register(moving, fixed)[0].movedim(0, -1).numpy()

    reference = published.convex_adam_pt(
        fixed[0, 0],
        moving[0, 0],
        lambda_weight=1.25 if iterations else 0,
        selected_niter=iterations,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert np.abs(reference).mean() > 1
    assert np.abs(ddf - reference).mean() < mean_tolerance
    assert np.abs(ddf - reference).max() < max_tolerance


def test_the_default_does_not_shrink_at_the_border_as_compat_does(pair):
    constant = torch.ones(1, 3, 12, 10, 14, dtype=torch.float16)

    class Estimate(Stage):
        """Stands in for an estimator that found the same displacement everywhere."""

        def forward(self, fixed, moving):
            return constant

    exact, reference = (
        RegistrationNet(MindSSC(), Estimate((3, 3, 3)), AdamRefiner(3, 0, compat=compat), compat=compat)(pair)
        for compat in (False, True)
    )

    torch.testing.assert_close(exact, torch.full((1, 3, *SIZE), 3.0))
    assert reference[0, 0, 18, 15, 21] == pytest.approx(3)
    assert reference[0, 0, 0, 0, 0] < 0.5


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 8), (1, 3, 8, 8, 8), (2, 8, 8, 8)])
def test_an_image_that_does_not_split_in_two_is_refused(shape):
    with pytest.raises(ValueError, match=r"moving and fixed side by side, \(B, 2C, I, J, K\), got shape"):
        convex_adam()(torch.zeros(shape))


def test_images_on_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"fixed has shape \(1, 1, 20, 22, 24\), moving \(1, 1, 20, 22, 25\)"):
        convex_adam().register(torch.zeros(1, 1, 20, 22, 25), torch.zeros(1, 1, 20, 22, 24))


def test_a_search_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"half_width=\(4, 4, 4\) .* \(7, 7, 4\) cells"):
        convex_adam(spacing=6, half_width=4)(torch.zeros(1, 2, 40, 40, 20))


@pytest.mark.parametrize("stages", [1, 2])
def test_a_field_that_is_not_on_its_grid_is_refused(pair, stages):
    class Shorter(Stage):
        def forward(self, *given):
            return torch.zeros(1, 3, *(cells - 1 for cells in given[0].shape[2:]))

    with pytest.raises(ValueError, match=r"\(11, 7, 20\) cells of \(3, 4, 2\) voxels do not cover"):
        RegistrationNet(MindSSC(), *[Shorter((3, 4, 2))] * stages)(pair)


def test_no_pass_at_all_is_refused():
    with pytest.raises(ValueError, match="passes >= 1, got 0"):
        convex_adam(passes=0)


def test_a_second_pass_moves_label_maps_without_inventing_labels():
    torch.manual_seed(0)
    label = nn.functional.interpolate(torch.randint(0, 3, (1, 1, 4, 5, 6)).float(), size=(16, 20, 18)).repeat(
        1, 2, 1, 1, 1
    )
    scan = torch.rand(1, 2, 16, 20, 18)
    image = torch.stack([scan[0, 0], label[0, 0].roll(2, 0), scan[0, 1], label[0, 1]])[None]
    # refuses a label that is none of these
    features = FeatureStack([MindSSC(), SemanticFeatures(labels=(0, 1, 2))])

    ddf = RegistrationNet(features, CoupledConvexEstimator(2, 2, inverse_consistency=0), passes=2)(image)

    assert ddf.abs().max() > 1
    moved = features.warped(image[:, :2], ddf)
    assert torch.equal(moved[:, :1], warp(image[:, :1], ddf))
    assert torch.equal(moved[:, 1:].unique(), torch.tensor([0.0, 1, 2]))


def test_refiners_work_one_after_the_other_each_on_its_own_grid():
    moving, fixed = torch.rand(2, 1, 1, 17, 20, 23)
    add = {2: 1.0, 3: 5.0}

    class Add(nn.Module):
        def __init__(self, cells):
            super().__init__()
            self.cells = cells

        def spacing(self, size):
            return (self.cells,) * 3

        def forward(self, fixed, moving, coarse_ddf=None):
            cells = tuple(-(-extent // self.cells) for extent in (17, 20, 23))
            assert fixed.shape[2:] == cells
            if coarse_ddf is None:
                return torch.ones(1, 3, *cells)
            assert coarse_ddf.shape[2:] == cells
            return coarse_ddf + add[self.cells]

    net = RegistrationNet(nn.Identity(), Add(4), [Add(2), Add(3)])

    # 1 cell of 4 voxels, 1 cell of 2 and 5 cells of 3 are 4 + 2 + 15 voxels everywhere
    torch.testing.assert_close(net.register(moving, fixed), torch.full((1, 3, 17, 20, 23), 21.0))


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"uncertainty": True}])
def test_each_image_is_prepared_once_and_later_passes_warp_the_result(pair, options):
    class WithLabels(nn.Module):
        calls = 0

        def forward(self, image):
            self.calls += 1
            return torch.cat([image, label_map(image)], 1)

    preparation = WithLabels()
    stages = (
        FeatureStack([MindSSC(), SemanticFeatures(labels=(0, 2, 5, 11))]),
        CoupledConvexEstimator(3, 2, inverse_consistency=2),
    )
    prepared = torch.cat([torch.cat([image, label_map(image)], 1) for image in pair.split(1, 1)], 1)

    output = RegistrationNet(*stages, passes=3, preparation=preparation, **options)(pair)

    torch.testing.assert_close(output, RegistrationNet(*stages, passes=3, **options)(prepared))
    # the covariance is another look at the pair
    assert preparation.calls == (4 if "uncertainty" in options else 2)
