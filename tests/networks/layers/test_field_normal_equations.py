# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.central_differences import central_differences
from monai_reg_ext.networks.layers.field_normal_equations import field_normal_equations
from monai_reg_ext.networks.layers.normal_equations import normal_equations
from monai_reg_ext.networks.layers.pool_to_grid import grid_size
from monai_reg_ext.networks.layers.upsample_ddf import upsample_ddf
from monai_reg_ext.networks.layers.warp import warp

CASES = [((13, 10, 17), (4, 3, 5)), ((8, 9, 12), (4, 3, 2)), ((7, 2, 33), (1, 4, 4)), ((1, 6, 3), (2, 4, 5))]


def scene(size, spacing, channels=1, amplitude=1.0, items=2):
    """Fixed and moving features, and a field in cells."""
    features = (torch.randn(items, channels, *size) for _ in range(2))
    return (*features, amplitude * torch.randn(items, len(size), *grid_size(size, spacing)))


def random_weight(size, items=2):
    """Between 0 and 1, a third of it 0."""
    return (1.5 * torch.rand(items, 1, *size) - 0.5).clamp(min=0)


def assert_equal_but_for_rounding(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("slopes", ["warped", "moving", "mean"])
@pytest.mark.parametrize(("coupled", "dense"), [(True, True), (False, False)])
@pytest.mark.parametrize(("size", "spacing"), [((9, 6, 11), (2, 3, 4)), ((11, 6), (4, 2))])
def test_the_equations_are_those_of_the_warped_features(plain, size, spacing, slopes, coupled, dense):
    fixed, moving, coarse_ddf = scene(size, spacing, 2)
    weights = random_weight(size), random_weight(size)

    found = plain(lambda: field_normal_equations(fixed, moving, coarse_ddf, spacing, slopes, *weights, coupled, dense))

    ddf = upsample_ddf(coarse_ddf, spacing, size)
    warped, weight = warp(moving, ddf), weights[0] * warp(weights[1], ddf)
    steep = {
        "warped": central_differences(warped),
        "moving": [warp(slope, ddf) for slope in central_differences(moving)],
        "mean": central_differences((warped + fixed) / 2),
    }[slopes]
    assert_equal_but_for_rounding(found, normal_equations(fixed, warped, spacing, steep, weight, coupled, dense))


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "spacing"), CASES)
def test_the_compiled_equations_are_the_plain_ones(compiled, plain, size, spacing, channels, coupled):
    given = scene(size, spacing, channels)

    found, expected = (
        run(lambda: field_normal_equations(*given, spacing, coupled=coupled)) for run in (compiled, plain)
    )

    assert found[0].shape == (2, 6 if coupled else 3, *grid_size(size, spacing))
    assert_equal_but_for_rounding(found, expected)


@pytest.mark.parametrize("weighted", [("fixed_weight",), ("moving_weight",), ("fixed_weight", "moving_weight")])
@pytest.mark.parametrize(("size", "spacing"), CASES[:2])
def test_so_are_the_compiled_ones_with_weights(compiled, plain, size, spacing, weighted):
    given, weights = scene(size, spacing, 2), {name: random_weight(size) for name in weighted}

    found, expected, unweighted = (
        run(lambda weights=weights: field_normal_equations(*given, spacing, **weights))
        for run, weights in ((compiled, weights), (plain, weights), (plain, {}))
    )

    assert_equal_but_for_rounding(found, expected)
    assert (found[0] - unweighted[0]).abs().max() > 0.1


def test_moving_features_may_lie_on_another_grid(compiled, plain):
    fixed, _, coarse_ddf = scene((13, 10, 17), (4, 3, 5))
    moving, weight = torch.randn(2, 1, 9, 14, 11), random_weight((9, 14, 11))

    found, expected = (
        run(lambda: field_normal_equations(fixed, moving, coarse_ddf, (4, 3, 5), moving_weight=weight))
        for run in (compiled, plain)
    )

    assert_equal_but_for_rounding(found, expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_the_control_points(compiled, plain, monkeypatch, threads):
    given = scene((25, 9, 10), (4, 3, 5))
    expected = plain(lambda: field_normal_equations(*given, (4, 3, 5)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    found = compiled(lambda: field_normal_equations(*given, (4, 3, 5)))

    assert_equal_but_for_rounding(found, expected)


@pytest.mark.parametrize("value", [1e9, -1e9, float("inf"), float("nan")])
def test_fields_that_leave_the_image_find_its_border(compiled, value):
    fixed, moving, coarse_ddf = scene((13, 10, 17), (4, 3, 5))

    found = compiled(lambda: field_normal_equations(fixed, moving, torch.full_like(coarse_ddf, value), (4, 3, 5)))

    at_border = moving[..., -1:, -1:, -1:] if value > 0 else moving[..., :1, :1, :1]
    expected = normal_equations(fixed, at_border.expand_as(moving), (4, 3, 5))
    assert_equal_but_for_rounding(found, expected)


def test_compiled_nothing_is_larger_than_the_features(compiled, largest_tensor):
    fixed, moving, coarse_ddf = scene((21, 18, 26), (4, 4, 4), items=1)

    with largest_tensor() as largest:
        compiled(lambda: field_normal_equations(fixed, moving, coarse_ddf, (4, 4, 4)))

    assert largest.values <= fixed.numel()


def test_gradients_are_those_of_what_it_joins():
    size, spacing = (6, 5, 7), (2, 3, 4)
    given = [tensor.requires_grad_() for tensor in scene(size, spacing)]

    matrix, right_side = field_normal_equations(*given, spacing)
    gradients = torch.autograd.grad(matrix.square().sum() + right_side.square().sum(), given)

    matrix, right_side = normal_equations(given[0], warp(given[1], upsample_ddf(given[2], spacing, size)), spacing)
    expected = torch.autograd.grad(matrix.square().sum() + right_side.square().sum(), given)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_does_not_belong_together_is_refused():
    fixed, moving, coarse_ddf = scene((13, 10, 17), (4, 3, 5))

    with pytest.raises(ValueError, match="slopes must be one of"):
        field_normal_equations(fixed, moving, coarse_ddf, (4, 3, 5), "fixed")
    with pytest.raises(ValueError, match="do not cover the grid"):
        field_normal_equations(fixed, moving, coarse_ddf[..., :-1], (4, 3, 5))
    with pytest.raises(ValueError, match="on one grid"):
        field_normal_equations(fixed, moving.expand(-1, 2, -1, -1, -1), coarse_ddf, (4, 3, 5))
