# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.warp import identity_grid, warp

SIZE = (16, 20, 18)


def affine_field(matrix, shift, size=SIZE):
    """Displacement ``matrix @ y - y + shift`` of y, the voxel counted from the middle of the grid."""
    centred = np.moveaxis(np.indices(size), 0, -1) - (np.array(size) - 1) / 2
    ddf = centred @ (matrix - np.eye(3)).T + shift
    return torch.from_numpy(np.moveaxis(ddf, -1, 0)).float()[None]


def test_warping_a_ramp_twice_is_warping_it_along_the_composition(smooth_field, interior):
    # linear interpolation of a ramp is exact, so that only the order and the place of the fields matter
    slope = torch.tensor([1.0, -0.7, 0.4]).view(1, 3, 1, 1, 1)
    ramp = (slope * identity_grid(SIZE, slope)).sum(1, keepdim=True)
    first, second = smooth_field(SIZE, 2.0, seed=1), smooth_field(SIZE, 2.0, seed=2)

    once, twice = warp(ramp, compose_ddf(first, second)), warp(warp(ramp, first), second)

    torch.testing.assert_close(interior(once, 4), interior(twice, 4), rtol=0, atol=1e-4)
    swapped = warp(ramp, compose_ddf(second, first))
    assert (interior(swapped, 4) - interior(twice, 4)).abs().max() > 0.1


def test_warping_a_smooth_image_twice_is_nearly_warping_it_along_the_composition(smooth_field, interior):
    where = identity_grid(SIZE, torch.zeros(1))
    image = torch.sin(where / torch.tensor([2.5, 3.0, 4.0]).view(1, 3, 1, 1, 1)).sum(1, keepdim=True)
    first, second = smooth_field(SIZE, 2.0, seed=1), smooth_field(SIZE, 2.0, seed=2)

    once, twice = warp(image, compose_ddf(first, second)), warp(warp(image, first), second)

    # each interpolation errs by at most f'' / 8 = (1/2.5^2 + 1/3^2 + 1/4^2) / 8 < 0.05
    assert (interior(once, 4) - interior(twice, 4)).abs().max() < 0.1


def test_affine_fields_compose_as_matrices(interior):
    rng = np.random.default_rng(0)
    a, b = (np.eye(3) + 0.1 * rng.standard_normal((3, 3)) for _ in range(2))
    s, t = rng.standard_normal((2, 3))

    composed = compose_ddf(affine_field(a, s), affine_field(b, t))

    # y -> b y + t by the second field, then -> a (b y + t) + s by the first
    torch.testing.assert_close(interior(composed, 5), interior(affine_field(a @ b, a @ t + s), 5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("zero_is_first", [True, False])
def test_the_zero_field_is_neutral(smooth_field, zero_is_first):
    ddf = smooth_field(SIZE, 3.0)
    pair = (torch.zeros_like(ddf), ddf) if zero_is_first else (ddf, torch.zeros_like(ddf))

    torch.testing.assert_close(compose_ddf(*pair), ddf, rtol=0, atol=1e-5)


def test_the_result_lies_on_the_second_grid_and_the_first_goes_on_outside_its_own():
    first = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 5, 6)
    second = torch.randn(1, 3, 9, 7, 8)

    torch.testing.assert_close(compose_ddf(first, second), second + first[..., :1, :1, :1])
