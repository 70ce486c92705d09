# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.compat import reference_stretch
from monai_reg_ext.networks.layers.feature_energy import FeatureEnergy
from monai_reg_ext.networks.layers.warp import identity_grid, sample

SIZE = (7, 5, 9)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 5, *SIZE, generator=generator) for _ in range(2)]


def random_field(amplitude, size=SIZE):
    return amplitude * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def random_weights(size=SIZE):
    """Between 0 and 2, half of them 0."""
    weights = 4 * torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(3)) - 2
    return weights.clamp(min=0)


def derived(fixed, moving, field, regularization, data_weight, compat, cell_weight=1.0):
    """Energy as its definition says, its gradient by autograd."""
    field = field.clone().requires_grad_()
    stretch = reference_stretch(field) if compat else 1.0
    warped = sample(
        moving, identity_grid(fixed.shape[2:], fixed) + field * stretch, padding="zeros" if compat else "border"
    )
    energy = data_weight * (cell_weight * (warped - fixed).square()).sum(1).mean((1, 2, 3))
    for dim in (2, 3, 4):
        if fixed.shape[dim] > 1:
            energy = energy + regularization * field.diff(dim=dim).square().mean((1, 2, 3, 4))
    (gradient,) = torch.autograd.grad(energy.sum(), field)
    return energy.detach(), gradient


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("amplitude", [0.3, 3.0])
@pytest.mark.parametrize(("regularization", "data_weight"), [(1.25, 1.0), (0.0, 12 / 5), (40.0, 0.0)])
def test_the_gradient_is_what_autograd_finds(pair, plain, compat, amplitude, regularization, data_weight):
    field = random_field(amplitude)

    gradient, energy = plain(lambda: FeatureEnergy(*pair, regularization, data_weight, compat).gradient(field))

    expected_energy, expected = derived(*pair, field, regularization, data_weight, compat)
    torch.testing.assert_close(energy, expected_energy)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("amplitude", [0.3, 3.0])
@pytest.mark.parametrize("size", [SIZE, (2, 3, 2), (12, 2, 33)])
@pytest.mark.parametrize("channels", [1, 12, 16])
def test_the_compiled_gradient_is_the_plain_one(plain, compiled, size, channels, compat, amplitude):
    fixed, moving = torch.rand(2, 2, channels, *size, generator=torch.Generator().manual_seed(2))
    field = random_field(amplitude, size)

    def both():
        gradient, energy = FeatureEnergy(fixed, moving, 1.25, 2.0, compat).gradient(field)
        return gradient.clone(), energy

    (gradient, energy), (expected, expected_energy) = compiled(both), plain(both)

    torch.testing.assert_close(energy, expected_energy)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("run", ["plain", "compiled"])
def test_the_gradient_with_weighted_cells_is_what_autograd_finds(pair, run, request, compat):
    field, weights = random_field(1.0), random_weights()

    def both():
        gradient, energy = FeatureEnergy(*pair, 1.25, 2.0, compat, weights).gradient(field)
        return gradient.clone(), energy

    gradient, energy = request.getfixturevalue(run)(both)

    expected_energy, expected = derived(*pair, field, 1.25, 2.0, compat, weights)
    torch.testing.assert_close(energy, expected_energy)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", ["plain", "compiled"])
def test_cells_without_weight_are_not_pulled(pair, run, request):
    weights = random_weights()

    gradient, _ = request.getfixturevalue(run)(
        lambda: FeatureEnergy(*pair, 0.0, cell_weight=weights).gradient(random_field(1.0))
    )

    assert gradient[(weights == 0).expand(-1, 3, -1, -1, -1)].abs().max() == 0
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("run", ["plain", "compiled"])
def test_weights_of_one_change_no_bit(pair, run, request):
    def gradient(weights):
        def both():
            return [
                part.clone() for part in FeatureEnergy(*pair, 1.25, cell_weight=weights).gradient(random_field(1.0))
            ]

        return request.getfixturevalue(run)(both)

    ones = gradient(torch.ones(2, 1, *SIZE))

    assert all(torch.equal(one, none) for one, none in zip(ones, gradient(None), strict=True))


@pytest.mark.parametrize("run", ["plain", "compiled"])
def test_beyond_the_border_nothing_pulls(pair, run, request):
    outside = torch.zeros(2, 3, *SIZE)
    outside[:, 0] = 20.0

    gradient, _ = request.getfixturevalue(run)(lambda: FeatureEnergy(*pair, 0.0).gradient(outside))

    assert torch.equal(gradient[:, 0], torch.zeros(2, *SIZE))


def test_a_grid_of_one_layer_has_a_gradient(pair):
    fixed, moving = (part[..., :1] for part in pair)
    field = random_field(0.4, (*SIZE[:2], 1))

    gradient, _ = FeatureEnergy(fixed, moving, 1.25).gradient(field)

    torch.testing.assert_close(gradient, derived(fixed, moving, field, 1.25, 1.0, False)[1], rtol=1e-4, atol=1e-6)


def test_the_result_does_not_depend_on_the_number_of_threads(pair, compiled):
    field, before = random_field(1.0), torch.get_num_threads()

    def gradient(threads):
        torch.set_num_threads(threads)
        return compiled(lambda: [part.clone() for part in FeatureEnergy(*pair, 1.25).gradient(field)])

    try:
        one, three = gradient(1), gradient(3)
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
