# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from monai_reg_ext.networks.layers import ThinPlateSpline, thin_plate_field

SCIPY_KERNELS = {"plate": "thin_plate_spline", "linear": "linear"}


def _random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def _affine(points):
    matrix = torch.tensor([[0.3, -0.2, 0.05], [0.1, 0.4, -0.3]], dtype=torch.float64)[:, : points.shape[-1]]
    return points @ matrix.T + torch.tensor([0.7, -1.1], dtype=torch.float64)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("kernel", ["plate", "linear"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_scipy_fits_the_same_function(axes, kernel, smoothing):
    points, values, positions = _random(2, 30, axes), _random(2, 30, 4, seed=1), 1.5 * _random(2, 17, axes, seed=2)

    result = ThinPlateSpline(points, values, smoothing, kernel)(positions)

    for item in range(2):
        oracle = RBFInterpolator(
            points[item].numpy(), values[item].numpy(), smoothing=smoothing, kernel=SCIPY_KERNELS[kernel], degree=1
        )
        np.testing.assert_allclose(result[item].numpy(), oracle(positions[item].numpy()), atol=1e-9)


@pytest.mark.parametrize("kernel", ["plate", "linear"])
def test_affine_values_are_kept_whatever_the_smoothing(kernel):
    points, positions = _random(1, 25, 3), 2 * _random(1, 9, 3, seed=1)

    result = ThinPlateSpline(points, _affine(points), smoothing=5.0, kernel=kernel)(positions)

    torch.testing.assert_close(result, _affine(positions))


def test_positions_are_taken_block_by_block_and_may_be_shared_by_all_items(monkeypatch):
    points, values, positions = _random(2, 12, 3), _random(2, 12, 3, seed=1), _random(1, 31, 3, seed=2)
    spline = ThinPlateSpline(points, values)
    whole = spline(positions.expand(2, -1, -1))

    monkeypatch.setattr(importlib.import_module("monai_reg_ext.networks.layers.thin_plate_spline"), "_BLOCK", 100)

    torch.testing.assert_close(spline(positions), whole)


def test_a_thousand_points_in_float32_are_as_in_float64():
    points, values, positions = _random(1, 1000, 3), _random(1, 1000, 3, seed=1), _random(1, 200, 3, seed=2)

    result = ThinPlateSpline(points.float(), values.float())(positions.float())

    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), ThinPlateSpline(points, values)(positions), atol=1e-3, rtol=0)


def test_gradients_to_points_and_values_are_right():
    points, values = _random(1, 7, 2).requires_grad_(), _random(1, 7, 2, seed=1).requires_grad_()
    positions = _random(1, 3, 2, seed=2)

    assert torch.autograd.gradcheck(lambda p, v: ThinPlateSpline(p, v, 0.1)(positions), (points, values))


@pytest.mark.parametrize("size", [(13, 22), (9, 14, 11)])
@pytest.mark.parametrize("spacing", [1, 4])
def test_the_field_is_the_spline_at_the_nodes_and_linear_in_between(size, spacing):
    half = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    points = (_random(2, 40, len(size)) + 1) * half
    displacements = 3 * _random(2, 40, len(size), seed=1)

    field = thin_plate_field(points, displacements, size, spacing=spacing)

    assert field.shape == (2, len(size), *size)
    spline = ThinPlateSpline(points / half - 1, displacements)
    corner = torch.tensor(size, dtype=torch.float64) - 1
    torch.testing.assert_close(field.flatten(2)[:, :, -1], spline((corner / half - 1)[None, None])[:, 0])
    if spacing == 1:
        inside = torch.full_like(corner, 3.0)
        at = (..., *[3] * len(size))
        torch.testing.assert_close(field[at], spline((inside / half - 1)[None, None])[:, 0])


@pytest.mark.parametrize(("kernel", "half"), [("plate", (3, 5.5, 4)), ("linear", (5.5, 5.5, 5.5))])
def test_the_field_is_that_of_scipy_with_even_lengths_and_as_published_with_those_of_each_axis(kernel, half):
    size, half = (7, 12, 9), torch.tensor(half)
    mesh = torch.cartesian_prod(*[torch.arange(extent, dtype=torch.float64) for extent in size])
    points, values = (_random(1, 30, 3) + 1) * (torch.tensor(size) - 1) / 2, _random(1, 30, 2, seed=1)

    field = thin_plate_field(points, values, size, 0.05, spacing=1, kernel=kernel)

    oracle = RBFInterpolator(points[0] / half, values[0], smoothing=0.05, kernel=SCIPY_KERNELS[kernel], degree=1)
    np.testing.assert_allclose(field[0].flatten(1).T.numpy(), oracle(mesh / half), atol=1e-9)


def test_the_small_number_in_the_published_logarithm_makes_no_difference():
    points, values, positions = _random(1, 12, 3)[0], _random(1, 12, 2, seed=1)[0], _random(1, 50, 3, seed=2)[0]

    def kernel(one, other):
        distance = (one[:, None] - other).norm(dim=2)
        return distance**2 * (distance + 1e-6).log()

    linear, of_positions = (torch.cat([torch.ones(len(x), 1), x], 1) for x in (points, positions))
    system = torch.zeros(16, 16, dtype=torch.float64)
    system[:12, :12] = kernel(points, points) + 0.1 * torch.eye(12)
    system[:12, 12:], system[12:, :12] = linear, linear.T
    weights = system.inverse() @ torch.cat([values, torch.zeros(4, 2)])
    expected = kernel(positions, points) @ weights[:12] + of_positions @ weights[12:]

    found = ThinPlateSpline(points[None], values[None], 0.1)(positions[None])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["plate", "linear"])
@pytest.mark.parametrize("size", [(13, 22), (9, 14, 11)])
def test_an_affine_motion_is_kept_at_every_voxel(size, kernel):
    axes = len(size)
    matrix = torch.tensor([[0.1, 0.2, 0.0], [-0.1, 0.05, 0.3], [0.0, 0.2, -0.1]], dtype=torch.float64)[:axes, :axes]
    points = (_random(1, 20, axes) + 1) * (torch.tensor(size) - 1) / 2
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(extent)) for extent in size], indexing="ij")).double()

    field = thin_plate_field(points, points @ matrix.T + 2, size, smoothing=0.5, kernel=kernel)

    torch.testing.assert_close(field[0], torch.tensordot(matrix, grid, 1) + 2)


@pytest.mark.parametrize(
    ("points", "values", "options", "message"),
    [
        ((1, 5, 3), (1, 6, 3), {}, r"as many values \(B, N, C\), got \(1, 5, 3\) and \(1, 6, 3\)"),
        ((1, 5, 4), (1, 5, 3), {}, "two or three axes"),
        ((1, 3, 3), (1, 3, 3), {}, "at least 4 points that do not lie in one plane, got 3"),
        ((1, 5, 3), (1, 5, 3), {"smoothing": -0.1}, "smoothing >= 0, got 'plate' and -0.1"),
        ((1, 5, 3), (1, 5, 3), {"kernel": "gauss"}, "'linear'.*got 'gauss'"),
    ],
)
def test_what_makes_no_spline_is_refused(points, values, options, message):
    with pytest.raises(ValueError, match=message):
        ThinPlateSpline(_random(*points), _random(*values), **options)


def test_points_in_one_plane_or_twice_the_same_are_refused():
    flat, twice = _random(1, 9, 3), _random(1, 9, 3)
    flat[..., 1] = 0
    turned = flat.float() @ torch.linalg.qr(_random(3, 3, seed=2).float())[0]
    twice[:, 4] = twice[:, 7]

    for points in (flat, turned, turned + 3):
        with pytest.raises(ValueError, match="lie in one plane"):
            ThinPlateSpline(points, _random(1, 9, 3, seed=1))
    with pytest.raises(ValueError, match="two of them coincide"):
        ThinPlateSpline(twice, _random(1, 9, 3, seed=1), smoothing=0)
    assert ThinPlateSpline(twice, _random(1, 9, 3, seed=1), smoothing=0.1)(flat).isfinite().all()


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf])
def test_points_and_values_that_are_not_known_are_refused(unknown):
    points, values = _random(1, 9, 3), _random(1, 9, 3, seed=1)
    holes = points.clone()
    holes[0, 4] = unknown

    for given in ((holes, values), (points, holes)):
        with pytest.raises(ValueError, match="needs finite points and values"):
            ThinPlateSpline(*given)


def test_a_spacing_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        thin_plate_field(_random(1, 5, 3), _random(1, 5, 3), (4, 5, 6), spacing=0)
