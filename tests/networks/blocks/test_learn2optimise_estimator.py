# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_reg_ext.networks.blocks import CoupledConvexEstimator, Learn2OptimiseEstimator, MindSSC
from monai_reg_ext.networks.blocks.learn2optimise_estimator import MixedConvolution
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import identity_grid, warp
from monai_reg_ext.networks.nets import RegistrationNet

SIZE = (17, 6, 9)


@pytest.fixture
def golden(golden_dir):
    return {name: torch.from_numpy(array) for name, array in np.load(golden_dir / "learn2optimise.npz").items()}


def features(size=SIZE, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, channels, *size, generator=generator)
    return box_filter(noise, (3,))


def lively(**settings):
    """An estimator whose first change is not zero."""
    estimator = Learn2OptimiseEstimator(iterations=3, **settings)
    for parameter in estimator.network.remaining[-1][-1].parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return estimator


def seen_by_network(estimator, call):
    """All channels of every iteration, as the reference lays them out."""
    given = []
    hook = estimator.network.register_forward_pre_hook(lambda _, volumes: given.append(volumes[0]))
    with torch.no_grad():
        call()
    hook.remove()
    mixture = estimator.network.encoder[0][0].conv.mixture
    return [torch.einsum("cg,bgijk->bcijk", mixture, volume) for volume in given]


def halves(size):
    return torch.tensor([(extent - 1) / 2 for extent in size]).view(1, 3, 1, 1, 1)


def test_it_gives_the_golden_inputs_costs_and_fields_with_the_golden_weights(golden):
    estimator = Learn2OptimiseEstimator(iterations=3, compat=True)
    weights = [array for name, array in golden.items() if name.startswith("net.")]
    with torch.no_grad():
        for parameter, array in zip(estimator.parameters(), weights, strict=True):
            parameter.copy_(array)
    fixed, moving = golden["fixed"][None], golden["moving"][None]
    in_cells = halves(fixed.shape[2:])
    start = golden["initial"][None].flip(1) * in_cells

    fields = []
    seen = seen_by_network(estimator, lambda: fields.extend(estimator.fields(fixed, moving, start)))

    torch.testing.assert_close(seen[0][0], golden["input_0"], rtol=0, atol=1e-5)
    for number in range(3):
        expected = start + golden[f"field_{number}"][None].flip(1) * in_cells
        torch.testing.assert_close(fields[number + 1], expected, rtol=0, atol=3e-4)
    # costs are those at the field that they stand beside
    for number in range(2):
        torch.testing.assert_close(seen[number + 1][0, -8:], golden[f"cost_{number}"], rtol=0, atol=1e-4)


def test_it_has_as_many_weights_as_published():
    for compat in (False, True):
        parameters = list(Learn2OptimiseEstimator(compat=compat).parameters())
        assert sum(parameter.numel() for parameter in parameters) == 254_493


@pytest.mark.parametrize(("compat", "expected"), [(True, (0.7125, 0.3525, 0.7725)), (False, (0.75, 0.75, 0.75))])
def test_it_looks_at_the_corners_of_a_box_around_the_displacement(monkeypatch, compat, expected):
    looked_at = []

    def no_cost(fixed, moving, places, displacements, padding):
        looked_at.append((displacements, padding))
        return torch.zeros(1, 8, *fixed.shape[2:])

    module = importlib.import_module("monai_reg_ext.networks.blocks.learn2optimise_estimator")
    monkeypatch.setattr(module, "sampled_cost", no_cost)
    estimator = Learn2OptimiseEstimator(iterations=1, compat=compat)
    estimator.network = torch.nn.Sequential(torch.nn.Conv3d(22, 13, 1))

    estimator(*[torch.zeros(1, 1, 96, 48, 104)] * 2)

    corners, padding = looked_at[0]
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    torch.testing.assert_close(corners, signs * torch.tensor(expected))
    assert padding == ("zeros" if compat else "border")


def test_the_first_convolution_sees_all_channels_without_laying_them_out():
    mixture = torch.randn(9, 4)
    convolution, given = MixedConvolution(mixture, 5), torch.rand(2, 4, 5, 3, 6)

    found = convolution(given)

    all_channels = torch.einsum("cg,bgijk->bcijk", mixture, given)
    expected = F.conv3d(all_channels, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert list(convolution.state_dict()) == ["weight", "bias"]


def test_untrained_it_keeps_the_field_that_it_is_given(smooth_field):
    start = smooth_field(SIZE, 2.0)
    estimator = Learn2OptimiseEstimator(iterations=2)

    assert torch.equal(estimator(features(), features(seed=1), start), start)
    assert torch.equal(estimator(features(), features(seed=1)), torch.zeros(1, 3, *SIZE))


def sample_in_float64(image, coordinates, padding="border"):
    """As the layer, which computes in float32."""
    size = image.new_tensor(image.shape[2:]).view(1, -1, 1, 1, 1)
    grid = ((2 * coordinates + 1) / size - 1).movedim(1, -1).flip(-1)
    return F.grid_sample(image, grid, padding_mode=padding, align_corners=False)


def mean_and_contrasts(cost):
    """Of the costs at eight corners: 30 times the mean, 100 times how they change with the sides of some axes."""
    corners = list(itertools.product([1.0, -1.0], repeat=3))
    given = []
    for axes in itertools.product([0, 1], repeat=3):
        signs = [math.prod(side for side, seen in zip(corner, axes, strict=True) if seen) for corner in corners]
        terms = [sign * cost[:, number] for number, sign in enumerate(signs)]
        given.append((100 if any(axes) else 30) * sum(terms) / 8)
    return torch.stack(given, 1)


def slow_fields(estimator, fixed, moving, start, differentiable):
    """All channels laid out, nothing computed again; the first convolution is a plain one."""
    first = estimator.network.encoder[0][0].conv
    scale = torch.tensor(estimator.scale).view(1, 3, 1, 1, 1)
    offset = torch.tensor(estimator.offset).view(1, 3, 1, 1, 1)
    change, hidden = torch.zeros_like(start), start.new_zeros(1, 10, *SIZE)
    corners = list(itertools.product([-1.0, 1.0], repeat=3))
    for _ in range(estimator.iterations):
        around = [change + offset * torch.tensor(signs).view(1, 3, 1, 1, 1) for signs in corners]
        places = identity_grid(SIZE, fixed) + start
        costs = [(fixed - sample_in_float64(moving, places + one)).square().mean(1) for one in around]
        cost = torch.stack(costs, 1)
        cost = cost if differentiable else cost.detach()
        coordinates = [(one / scale)[:, axis] for axis in (2, 1, 0) for one in around]
        shown = torch.cat([hidden / 8, mean_and_contrasts(cost)], 1)
        channels = torch.cat([(change / scale).flip(1), torch.stack(coordinates, 1), shown], 1)
        mixture = first.mixture
        first.mixture = torch.eye(45).to(start)
        out = estimator.network(channels).tanh()
        first.mixture = mixture
        found = box_filter(out[:, :3].flip(1), (3, 3))
        change = change + estimator.step * found if estimator.update == "residual" else scale * found
        hidden = out[:, 3:]
        yield start + change


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("update", ["residual", "absolute"])
def test_fields_and_gradients_are_those_of_the_slow_form(monkeypatch, smooth_field, update, differentiable):
    module = importlib.import_module("monai_reg_ext.networks.layers.sampled_cost")
    monkeypatch.setattr(module, "sample", sample_in_float64)
    settings = {"offset": (0.5, 0.75, 1.0), "scale": (16.0, 8.0, 32.0), "step": 1.5}
    estimator = lively(update=update, differentiable=differentiable, **settings).double()
    given = features(), features(seed=1), smooth_field(SIZE, 1.5)
    fixed, moving, start = (tensor.double().requires_grad_() for tensor in given)
    sources = [*estimator.parameters(), start]

    fields = list(estimator.fields(fixed, moving, start))[1:]
    expected = list(slow_fields(estimator, fixed, moving, start, differentiable))

    torch.testing.assert_close(fields, expected, rtol=1e-6, atol=1e-7)
    assert len({round(float(field.detach().sum()), 3) for field in fields}) == 3
    losses = [sum((t + 1) * field.square().mean() for t, field in enumerate(of)) for of in (fields, expected)]
    found, wanted = (torch.autograd.grad(loss, sources, retain_graph=True) for loss in losses)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    to_features = torch.autograd.grad(losses[0], [fixed, moving], allow_unused=True)
    assert all((gradient is not None) == differentiable for gradient in to_features)


def test_truncated_gradients_are_those_of_iterations_that_start_anew(smooth_field):
    estimator = lively(truncation=2)
    given = features(), features(seed=1), smooth_field(SIZE, 1.5)
    weights = list(estimator.parameters())

    _, first, second, third = estimator.fields(*given)
    found = [torch.autograd.grad(field.square().mean(), weights, retain_graph=True) for field in (second, third)]
    estimator.truncation = None
    wanted = []
    for anew, last in ((0, 2), (2, 3)):
        state = given[2], torch.zeros(1, 3, *SIZE), torch.zeros(1, 10, *SIZE)
        for number in range(last):
            if number == anew:
                state = state[0], state[1].detach(), state[2].detach()
            state = given[2], *estimator._iterate(*given[:2], 1 / given[0].shape[1], *state)
        wanted.append(torch.autograd.grad((state[0] + state[1]).square().mean(), weights))

    assert first.requires_grad
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_truncation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="truncation must be 1 iteration or more, or None, got 0"):
        Learn2OptimiseEstimator(truncation=0)


def test_the_first_weights_learn_from_every_iteration():
    estimator = lively()
    first = estimator.network.encoder[0][0].conv.weight

    _, *fields = estimator.fields(features(), features(seed=1))

    for field in fields:
        (gradient,) = torch.autograd.grad(field.square().mean(), first, retain_graph=True)
        assert gradient.norm() > 0


@pytest.mark.parametrize(("settings", "largest"), [({"step": 0.7}, 0.7), ({"update": "absolute", "scale": 0.3}, 0.3)])
def test_changes_are_bounded(settings, largest):
    estimator = lively(**settings)
    torch.nn.init.normal_(estimator.network.remaining[-1][-1].bias, std=9.0)

    with torch.no_grad():
        fields = list(estimator.fields(features(), features(seed=1)))

    changes = [after - before for before, after in itertools.pairwise(fields)]
    for bounded in changes if "step" in settings else fields[1:]:
        assert 0.5 * largest < bounded.abs().max() <= 1.001 * largest


def test_iterations_may_differ_in_training_and_be_changed():
    estimator = lively(training_iterations=1)

    numbers = [len(list(estimator.train(training).fields(features(), features(seed=1)))) for training in (True, False)]
    estimator.iterations = 2

    assert numbers == [2, 4]
    assert len(list(estimator.fields(features(), features(seed=1)))) == 3


def test_levels_are_registrations_one_behind_the_other(smooth_field):
    size = (41, 9, 12)
    estimator = lively(levels=(2, 1))
    inside = torch.ones(2, 1, 1, *size)
    inside[0, ..., :5] = inside[1, :, :, 30:] = 0
    given = features(size), features(size, seed=1), smooth_field(size, 3.0), *inside
    fixed, moving, start, *masks = given

    with torch.no_grad():
        fields = list(estimator.fields(*given))
        estimator.levels, estimator.iterations = (1,), 1
        halved = [pool_to_grid(side, (2, 2, 2)) for side in (fixed, moving, *masks)]
        begin = downsample_ddf(start, (2, 2, 2))
        coarse = start + upsample_ddf(estimator(*halved[:2], begin, *halved[2:]) - begin, (2, 2, 2), size)
        estimator.iterations = 2
        fine = list(estimator.fields(fixed, moving, coarse, *masks))

    torch.testing.assert_close(fields, [start, *fine], rtol=1e-4, atol=1e-4)
    assert (coarse - start).abs().max() > 0.1


@pytest.mark.parametrize(
    ("levels", "extent", "expected"),
    [((4, 2, 1), 70, [(4, 2), (2, 3), (1, 3)]), ((4, 2, 1), 64, [(2, 4), (1, 4)]), ((4, 2), 20, [(2, 8)])],
)
def test_iterations_are_shared_among_levels_on_which_the_network_works(levels, extent, expected):
    assert Learn2OptimiseEstimator(levels=levels)._shares((extent, 9, 12)) == expected


@pytest.mark.parametrize("levels", [(), (0,), (2, 1.5)])
def test_levels_are_whole_numbers(levels):
    with pytest.raises(ValueError, match="levels must be whole numbers"):
        Learn2OptimiseEstimator(levels=levels)


def test_truncated_gradients_do_not_reach_back_to_a_coarser_level():
    size = (36, 9, 12)
    last = {}
    for truncation in (1, None):
        estimator = lively(levels=(2, 1), truncation=truncation)
        *_, coarse, _, fine = estimator.fields(features(size), features(size, seed=1))
        coarse.retain_grad()
        fine.square().mean().backward()
        last[truncation] = coarse.grad

    assert last[1] is None
    assert last[None].norm() > 0


def test_what_lies_outside_the_fixed_mask_costs_nothing_and_leaving_the_moving_one_does():
    fixed = features()
    inside = torch.ones(1, 1, *SIZE)
    left = inside.clone()
    left[..., 5:] = 0
    estimator = Learn2OptimiseEstimator(iterations=1, mask_penalty=6.0, conditioning=None)

    (plain,) = seen_by_network(estimator, lambda: estimator(fixed, fixed))
    (masked,) = seen_by_network(estimator, lambda: estimator(fixed, fixed, None, left, inside))
    (leaving,) = seen_by_network(estimator, lambda: estimator(fixed, fixed, None, inside, left))

    assert masked[:, -8:, ..., 5:].abs().max() == 0
    torch.testing.assert_close(masked[:, -8:, ..., :4], plain[:, -8:, ..., :4])
    penalty = leaving[:, -8:, ..., 6:] - plain[:, -8:, ..., 6:]
    torch.testing.assert_close(penalty, torch.full_like(penalty, 6.0 / 3), rtol=1e-3, atol=1e-3)


def test_it_learns_to_find_a_displacement():
    moving = features((24, 10, 13), channels=4)
    fixed = warp(moving, torch.tensor([1.0, -0.8, 0.6]).view(1, 3, 1, 1, 1).expand(1, 3, 24, 10, 13))
    target = torch.tensor([1.0, -0.8, 0.6]).view(1, 3, 1, 1, 1)
    estimator = Learn2OptimiseEstimator(iterations=2)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3)

    losses = []
    for _ in range(12):
        _, *fields = estimator.fields(fixed, moving)
        loss = sum((t + 1) * (field - target).norm(dim=1).mean() for t, field in enumerate(fields)) / 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[0] == pytest.approx(2**0.5, rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_half_precision_changes_an_iteration_little():
    estimator = lively(step=1.0).eval()
    estimator.iterations = 1
    with torch.no_grad():
        expected = estimator(features(), features(seed=1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = estimator(features(), features(seed=1))

    assert found.dtype == torch.float32
    assert (found - expected).square().mean() < 0.01 * expected.square().mean()


def test_bfloat16_is_used_only_without_gradients():
    estimator, pair = lively(), (features(), features(seed=1))
    estimator.iterations = 1
    expected = estimator(*pair).detach()

    estimator.bfloat16 = True
    with_gradients = estimator(*pair)
    with torch.no_grad():
        without = estimator(*pair)

    assert torch.equal(with_gradients, expected)
    assert 0 < (without - expected).square().mean() < 0.01 * expected.square().mean()


def test_it_is_an_estimator_and_a_refiner_of_the_skeleton(texture):
    size = (36, 15, 21)
    moving, fixed = texture(size), texture(size, seed=1)
    image, masks = torch.cat([moving, fixed], 1), (torch.ones_like(moving), torch.ones_like(fixed))

    alone = RegistrationNet(MindSSC(), lively())(image, *masks)
    behind = RegistrationNet(MindSSC(), CoupledConvexEstimator(4, 1), Learn2OptimiseEstimator((2, 1, 1), 1))

    assert alone.shape == (1, 3, *size)
    alone.square().sum().backward()
    assert behind(image).shape == (1, 3, *size)
    assert behind(image).abs().max() > 0.1


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="update must be one of"):
        Learn2OptimiseEstimator(update="relative")
    with pytest.raises(ValueError, match="features on one grid"):
        Learn2OptimiseEstimator()(features(), features((17, 6, 8)))
    with pytest.raises(ValueError, match="an axis of more than 16 cells"):
        Learn2OptimiseEstimator()(features((16, 9, 12)), features((16, 9, 12)))
