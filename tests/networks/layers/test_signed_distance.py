# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from monai_reg_ext.networks.layers.signed_distance import signed_distance


def by_hand(inside, voxel_size):
    """Distance from every voxel to every voxel of the other kind."""
    places = np.argwhere(np.ones_like(inside)) * voxel_size
    distances = cdist(places, places)
    flat = inside.ravel()
    to_outside, to_inside = distances[:, ~flat].min(1), distances[:, flat].min(1)
    return np.where(flat, to_outside, -to_inside).reshape(inside.shape)


@pytest.mark.parametrize("voxel_size", [None, (1.5, 0.5, 2.0)])
def test_it_is_the_distance_to_the_nearest_voxel_of_the_other_kind(voxel_size):
    inside = torch.rand(2, 2, 5, 7, 4, generator=torch.Generator().manual_seed(0)) < 0.2

    maps = signed_distance(inside, 1.0, 3.0, voxel_size)

    assert maps.dtype == torch.float32
    for item in range(2):
        for channel in range(2):
            expected = 3 * by_hand(inside[item, channel].numpy(), voxel_size or (1, 1, 1))
            np.testing.assert_allclose(maps[item, channel], expected, rtol=1e-6)


def test_the_root_keeps_the_sign_and_jumps_by_twice_the_scale():
    line = torch.zeros(1, 1, 12, 3)
    line[:, :, :4] = 1

    root = signed_distance(line)[0, 0, :, 1]

    distance = torch.tensor([4.0, 3, 2, 1, 1, 2, 3, 4, 5, 6, 7, 8])
    torch.testing.assert_close(root, 20 * distance.sqrt() * torch.tensor([1.0] * 4 + [-1.0] * 8))


@pytest.mark.parametrize("value", [0, 1])
def test_a_region_without_border_is_zero(value):
    inside = torch.full((2, 1, 4, 5, 3), value)
    inside[1, 0, 2, 2, 2] = 1 - value

    maps = signed_distance(inside)

    assert maps[0].abs().max() == 0
    assert maps[1].abs().min() >= 20


@pytest.mark.parametrize("settings", [{"power": 0.0}, {"scale": -1.0}, {"power": float("nan")}])
def test_power_and_scale_must_be_positive(settings):
    with pytest.raises(ValueError, match="must be > 0"):
        signed_distance(torch.ones(1, 1, 3, 4, 5), **settings)
