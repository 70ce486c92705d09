# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F

from monai_reg_ext.networks.layers.min_convolution import min_convolution, quadratic_envelope

MODULE = importlib.import_module("monai_reg_ext.networks.layers.min_convolution")


@pytest.fixture(params=["compiled", "torch", "thin blocks"])
def forms(request, monkeypatch):
    monkeypatch.setenv("MONAI_REG_NUMBA", str(int(request.param == "compiled")))
    if request.param == "thin blocks":
        monkeypatch.setattr(MODULE, "_CPU_BLOCK", 1)


def pooled(cost: torch.Tensor, averages: int = 2) -> torch.Tensor:
    """As the paper's code does it: replicated by 3, minimum of 3x3x3, average of 3x3x3 twice."""
    windows = cost.flatten(4).movedim(-1, 1).flatten(0, 1)[:, None]
    windows = -F.max_pool3d(-F.pad(windows, [1 + averages] * 6, mode="replicate"), 3, stride=1)
    for _ in range(averages):
        windows = F.avg_pool3d(windows, 3, stride=1)
    return windows.unflatten(0, (len(cost), -1))[:, :, 0].movedim(1, -1).reshape(cost.shape)


@pytest.mark.parametrize("window", [(4, 5, 3), (2, 1, 7), (1, 6, 2), (1, 1, 1)])
def test_it_is_the_pooling_of_the_paper(forms, window):
    cost = torch.rand(2, *window, 3, 5, 4)

    torch.testing.assert_close(min_convolution(cost), pooled(cost))


@pytest.mark.parametrize("window", [(4, 5, 3), (2, 1, 7), (1, 6, 2), (1, 1, 1)])
def test_its_gradient_is_that_of_the_pooling(forms, window):
    cost = torch.rand(2, *window, 3, 5, 4, requires_grad=True)
    slopes = torch.randn(cost.shape)

    (found,) = torch.autograd.grad(min_convolution(cost), cost, slopes)

    (expected,) = torch.autograd.grad(pooled(cost), cost, slopes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_more_points_than_a_block_of_the_kernel_are_all_done(compiled):
    cost = torch.rand(1, 3, 2, 4, 5, 7, 11, requires_grad=True)  # 385 points
    slopes = torch.randn(cost.shape)

    result = compiled(lambda: min_convolution(cost))
    gradient = compiled(lambda: torch.autograd.grad(min_convolution(cost), cost, slopes)[0])

    torch.testing.assert_close(result, pooled(cost))
    torch.testing.assert_close(gradient, torch.autograd.grad(pooled(cost), cost, slopes)[0], atol=1e-5, rtol=1e-5)


def test_fewer_averages_are_possible():
    cost = torch.rand(1, 4, 5, 3, 2, 3, 1)

    torch.testing.assert_close(min_convolution(cost, averages=1), pooled(cost, averages=1))
    torch.testing.assert_close(min_convolution(cost, averages=0), pooled(cost, averages=0))


def test_its_gradient_is_right():
    cost = torch.rand(1, 3, 2, 4, 1, 2, 1, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(min_convolution, cost)


def test_constants_pass_and_are_kept(forms):
    cost = torch.rand(1, 4, 3, 5, 2, 3, 1)

    torch.testing.assert_close(min_convolution(cost + 2.5), min_convolution(cost) + 2.5)
    torch.testing.assert_close(min_convolution(torch.full_like(cost, 3.0)), torch.full_like(cost, 3.0))


def test_half_precision_is_counted_in_float32():
    cost = torch.rand(1, 4, 3, 5, 2, 3, 1).half()

    torch.testing.assert_close(min_convolution(cost), min_convolution(cost.float()))


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("cheap", [(0, 0, 0), (2, 4, 1)])
def test_one_cheap_displacement_becomes_a_paraboloid(weight, cheap):
    cost = torch.full((1, 3, 6, 4, 1, 2, 1), 1e6)
    cost[(0, *cheap)] = 0.0

    envelope = quadratic_envelope(cost, weight)[0, :, :, :, 0, 1, 0]

    axes = torch.meshgrid(torch.arange(3.0), torch.arange(6.0), torch.arange(4.0), indexing="ij")
    expected = weight * sum((axis - one) ** 2 for axis, one in zip(axes, cheap, strict=True))
    torch.testing.assert_close(envelope, expected)


def test_the_envelope_is_the_least_over_all_displacements():
    cost = torch.rand(2, 3, 4, 2, 2, 1, 3)

    labels = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0), torch.arange(2.0))
    distance = (labels[:, None] - labels).square().sum(-1)
    expected = (cost.flatten(1, 3)[:, None] + 0.1 * distance[..., None, None, None]).amin(2).view_as(cost)

    torch.testing.assert_close(quadratic_envelope(cost, 0.1), expected)


def test_the_gradient_of_the_envelope_is_right():
    cost = torch.rand(1, 3, 2, 4, 1, 2, 1, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda cost: quadratic_envelope(cost, 0.1), cost)


def test_a_weight_that_is_not_positive_is_refused():
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="weight must be > 0"):
            quadratic_envelope(torch.rand(1, 3, 2, 4, 1, 2, 1), weight)


@pytest.mark.parametrize("function", [min_convolution, lambda cost: quadratic_envelope(cost, 1.0)])
def test_costs_of_another_form_are_refused(function):
    with pytest.raises(ValueError, match="got shape \\(1, 24, 1, 2, 1\\)"):
        function(torch.rand(1, 24, 1, 2, 1))
