# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck

from monai_reg_ext.networks.layers.sampled_cost import sampled_cost
from monai_reg_ext.networks.layers.warp import identity_grid

SIZE, MOVING_SIZE = (5, 7, 4), (6, 5, 8)
DISPLACEMENTS = torch.tensor([[0.0, 0, 0], [0.7, -0.3, 1.6], [-9.0, 2.5, 0.4]])


def sides(channels=3, moving_size=MOVING_SIZE):
    fixed, moving = torch.rand(2, channels, *SIZE), torch.rand(2, channels, *moving_size)
    return fixed, moving, identity_grid(SIZE, fixed) + 2 * torch.randn(2, 3, *SIZE)


def by_scipy(fixed, moving, places, displacements, mode="nearest"):
    cost = torch.zeros(len(fixed), len(displacements), *SIZE)
    for item, features in enumerate(moving):
        for label, displacement in enumerate(displacements):
            where = (places[item] + displacement.view(3, 1, 1, 1)).numpy()
            for channel, values in enumerate(features.numpy()):
                seen = torch.from_numpy(map_coordinates(values, where, order=1, mode=mode))
                cost[item, label] += (fixed[item, channel] - seen).square()
    return cost


def test_it_is_the_squared_difference_at_every_displaced_place(plain):
    given = sides()

    cost = plain(lambda: sampled_cost(*given, DISPLACEMENTS))

    torch.testing.assert_close(cost, by_scipy(*given, DISPLACEMENTS), rtol=1e-4, atol=1e-4)


def test_outside_may_be_zero():
    fixed, moving, places = sides()
    framed = F.pad(moving, [1] * 6)

    cost = sampled_cost(fixed, moving, places, DISPLACEMENTS, padding="zeros")

    expected = by_scipy(fixed, framed, places + 1, DISPLACEMENTS)
    torch.testing.assert_close(cost, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("moving_size", [MOVING_SIZE, (1, 5, 1), SIZE])
@pytest.mark.parametrize("channels", [1, 12])
def test_the_compiled_form_finds_the_same(compiled, plain, channels, moving_size):
    given = sides(channels, moving_size)

    found = compiled(lambda: sampled_cost(*given, DISPLACEMENTS))

    torch.testing.assert_close(found, plain(lambda: sampled_cost(*given, DISPLACEMENTS)), rtol=1e-4, atol=1e-4)


def test_it_has_gradients_to_features_and_places(monkeypatch):
    def sample_in_float64(image, coordinates, padding):
        size = image.new_tensor(image.shape[2:]).view(1, -1, 1, 1, 1)
        grid = ((2 * coordinates + 1) / size - 1).movedim(1, -1).flip(-1)
        return F.grid_sample(image, grid, padding_mode=padding, align_corners=False)

    module = importlib.import_module("monai_reg_ext.networks.layers.sampled_cost")
    monkeypatch.setattr(module, "sample", sample_in_float64)
    given = [tensor[:1].double().requires_grad_() for tensor in sides(2)]

    assert gradcheck(lambda *given: sampled_cost(*given, DISPLACEMENTS.double()), given, fast_mode=True)


def test_what_does_not_fit_is_refused():
    fixed, moving, places = sides()

    with pytest.raises(ValueError, match="as many channels on both sides"):
        sampled_cost(fixed[:, :2], moving, places, DISPLACEMENTS)
    with pytest.raises(ValueError, match="a place for each fixed cell"):
        sampled_cost(fixed, moving, places[..., :2], DISPLACEMENTS)
