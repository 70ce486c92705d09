# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_reg_ext.networks.layers.mean_field import mean_field, pass_messages
from monai_reg_ext.networks.layers.min_convolution import min_convolution, quadratic_envelope


@pytest.fixture(params=["1", "0"])
def kernels(request, monkeypatch):
    monkeypatch.setenv("MONAI_REG_NUMBA", request.param)


def pooled(cost: torch.Tensor) -> torch.Tensor:
    """As the paper's code does it: replicated by 2, average of 3x3x3 twice."""
    volumes = F.pad(cost.flatten(0, 3)[:, None], [2] * 6, mode="replicate")
    return F.avg_pool3d(F.avg_pool3d(volumes, 3, stride=1), 3, stride=1).view(cost.shape)


@pytest.mark.parametrize("points", [(6, 5, 7), (1, 4, 2), (1, 1, 1)])
def test_messages_are_the_pooling_of_the_paper(kernels, points):
    cost = torch.rand(2, 2, 3, 1, *points, requires_grad=True)
    slopes = torch.randn(cost.shape)

    found = pass_messages(cost)

    torch.testing.assert_close(found, pooled(cost), atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(result, cost, slopes)[0] for result in (found, pooled(cost))]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_messages_may_go_along_some_axes_only(kernels):
    cost = torch.rand(1, 2, 3, 2, 4, 5, 6)

    found = pass_messages(cost, ((3,), (1,), (5,)))

    padded = F.pad(cost.flatten(0, 3)[:, None], [2, 2, 0, 0, 1, 1], mode="replicate")
    torch.testing.assert_close(found, F.avg_pool3d(padded, (3, 1, 5), stride=1).view_as(cost))
    assert pass_messages(cost, ((), (), ())) is cost


def test_the_gradient_of_messages_is_right():
    cost = torch.rand(1, 2, 1, 2, 3, 1, 4, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(pass_messages, cost)


def test_every_round_starts_from_the_costs_and_the_round_before(kernels):
    cost = torch.rand(1, 3, 4, 2, 3, 2, 5)
    before = cost.clone()

    found = mean_field(cost, 3, data_weight=0.7, message_weight=-0.4, bias=0.3)

    belief = pass_messages(min_convolution(cost))
    for _ in range(2):
        belief = pass_messages(min_convolution(0.3 + 0.7 * cost - 0.4 * belief))
    torch.testing.assert_close(found, belief)
    assert torch.equal(cost, before)


def test_the_envelope_may_take_the_place_of_the_min_convolution(kernels):
    cost = torch.rand(1, 3, 4, 2, 3, 2, 5)

    found = mean_field(cost, 1, envelope_weight=0.2)

    torch.testing.assert_close(found, pass_messages(quadratic_envelope(cost, 0.2)))


def test_without_messages_every_point_is_by_itself(kernels):
    cost = torch.rand(1, 3, 4, 2, 3, 2, 5)
    changed = cost.clone()
    changed[..., 1, 1, 3] += 1

    difference = mean_field(changed, message_widths=((), (), ())) - mean_field(cost, message_widths=((), (), ()))

    points = difference.abs().amax((0, 1, 2, 3)).nonzero()
    assert points.tolist() == [[1, 1, 3]]


def test_with_and_without_gradients_it_is_the_same(kernels):
    cost = torch.rand(1, 3, 4, 2, 3, 2, 5)
    weights = torch.tensor([0.7, -0.4, 0.3])

    with torch.no_grad():
        plain = mean_field(cost, 3, *weights)
    with_gradients = mean_field(cost, 3, *weights.requires_grad_())

    torch.testing.assert_close(plain, with_gradients)


def test_a_constant_reaches_the_result_and_not_the_probabilities():
    cost = torch.rand(1, 3, 4, 2, 2, 2, 3, dtype=torch.float64)
    biases = torch.tensor([0.1, 0.1], dtype=torch.float64, requires_grad=True)

    belief = mean_field(cost + biases[0], bias=biases[1])
    probabilities = (-belief.flatten(1, 3)).softmax(1)
    (gradient,) = torch.autograd.grad((probabilities * torch.rand_like(probabilities)).sum(), biases)

    assert gradient.abs().max() < 1e-12
    torch.testing.assert_close(mean_field(cost + 2, bias=1.0), mean_field(cost) + 2 + 2 + 1, rtol=1e-9, atol=1e-9)


def test_its_gradient_is_right():
    cost = torch.rand(1, 3, 2, 2, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    weights = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.8, -0.6, 0.2)]

    assert torch.autograd.gradcheck(lambda *args: mean_field(args[0], 2, *args[1:]), (cost, *weights))


def test_no_rounds_and_even_widths_are_refused():
    with pytest.raises(ValueError, match="rounds >= 1, got 0"):
        mean_field(torch.rand(1, 3, 2, 2, 2, 1, 3), 0)
    with pytest.raises(ValueError, match="odd and positive"):
        pass_messages(torch.rand(1, 3, 2, 2, 2, 1, 3), ((3,), (2,), (3,)))
