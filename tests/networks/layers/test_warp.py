# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates

from monai_reg_ext.networks.layers.warp import identity_grid, sample, warp

SIZES = [(7, 5, 9), (6, 11)]


def slow_sample(image, coordinates, **options):
    """scipy's value of every item and channel."""
    return np.stack(
        [
            np.stack([map_coordinates(channel, where, **options) for channel in item])
            for item, where in zip(image.numpy(), coordinates.double().numpy(), strict=True)
        ]
    )


def coordinates_in_and_around(size, out_size):
    """Random coordinates from three voxels before the grid to three voxels behind it."""
    extent = torch.tensor(size).view(1, -1, *[1] * len(size))
    return torch.rand(2, len(size), *out_size) * (extent + 6) - 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("padding", "scipy_mode"), [("border", "nearest"), ("zeros", "grid-constant")])
def test_linear_values_are_scipys_inside_and_outside_the_image(size, padding, scipy_mode):
    image = torch.randn(2, 3, *size)
    coordinates = coordinates_in_and_around(size, out_size=(4, 8, 3)[: len(size)])

    values = sample(image, coordinates, padding=padding)

    expected = slow_sample(image, coordinates, order=1, mode=scipy_mode)
    np.testing.assert_allclose(values.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("padding", "scipy_mode"), [("border", "nearest"), ("zeros", "constant")])
def test_nearest_values_are_scipys_inside_and_outside_the_image(size, padding, scipy_mode):
    label = torch.randint(1, 1000, (2, 2, *size), dtype=torch.int32)
    coordinates = coordinates_in_and_around(size, out_size=(4, 8, 3)[: len(size)])

    values = sample(label, coordinates, "nearest", padding)

    assert values.dtype == torch.int32
    np.testing.assert_array_equal(values.numpy(), slow_sample(label, coordinates, order=0, mode=scipy_mode))


@pytest.mark.parametrize(("padding", "scipy_mode"), [("border", "nearest"), ("zeros", "constant")])
def test_nearest_halves_round_up_and_the_border_belongs_to_the_image(padding, scipy_mode):
    label = torch.arange(1, 6).view(1, 1, 5, 1)
    along = torch.tensor([-0.6, -0.5, -0.01, 0.0, 0.49, 0.5, 1.5, 2.5, 3.5, 4.0, 4.01, 4.5, 9.0])
    coordinates = torch.stack([along, torch.zeros_like(along)])[None, ..., None]

    values = sample(label, coordinates, "nearest", padding)

    np.testing.assert_array_equal(values.numpy(), slow_sample(label, coordinates, order=0, mode=scipy_mode))
    outside = (along < 0) | (along > 4)
    clamped = torch.tensor([1, 1, 1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 5])
    expected = clamped if padding == "border" else clamped.where(~outside, 0)
    assert values.flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_the_identity_grid_counts_voxels_along_array_axes(size):
    grid = identity_grid(list(size), torch.zeros(1, dtype=torch.float64))

    assert grid.dtype == torch.float32
    np.testing.assert_array_equal(grid[0].numpy(), np.indices(size))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_channel_c_pulls_along_array_axis_c(mode):
    image = torch.randn(1, 1, 8, 9, 10)
    ddf = torch.tensor([2.0, -3.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 8, 9, 10)

    warped = warp(image, ddf, mode)

    torch.testing.assert_close(warped[..., :6, 3:, :9], image[..., 2:, :6, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("image_size", [(9, 12, 7), (4, 5, 3)])
def test_the_image_may_be_larger_or_smaller_than_the_field(mode, image_size):
    image = torch.rand(1, 2, *image_size) + 1
    ddf = torch.zeros(1, 3, 6, 7, 5)

    warped = warp(image, ddf, mode, padding="zeros")

    common = [slice(min(a, b)) for a, b in zip(image_size, (6, 7, 5), strict=True)]
    expected = torch.zeros(1, 2, 6, 7, 5)
    expected[(..., *common)] = image[(..., *common)]
    torch.testing.assert_close(warped, expected, rtol=1e-5, atol=1e-5)


def test_a_single_slice_has_zeros_beside_it():
    image = torch.ones(1, 1, 4, 1)
    coordinates = torch.tensor([[2.0, 2, 2, 2], [-1.5, -0.25, 0, 0.75]]).view(1, 2, 4, 1)

    values = sample(image, coordinates, padding="zeros")

    torch.testing.assert_close(values.flatten(), torch.tensor([0.0, 0.75, 1.0, 0.25]))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float16, torch.float64])
def test_a_zero_field_returns_the_image_and_its_type(mode, dtype):
    image = torch.randint(0, 255, (1, 1, 50, 3, 41)).to(dtype)

    warped = warp(image, torch.zeros(1, 3, 50, 3, 41), mode)

    torch.testing.assert_close(warped, image, rtol=1e-3 if dtype.is_floating_point else 0, atol=1e-3)


def test_large_labels_survive_where_float32_would_round_them():
    label = torch.tensor([2**24 + 1, 7, 2**31 - 1], dtype=torch.int64).view(1, 1, 3, 1)

    assert warp(label, torch.zeros(1, 2, 3, 1), "nearest").flatten().tolist() == label.flatten().tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_fields_and_coordinates_of_any_precision_are_followed_in_float32(dtype):
    image = torch.arange(3000.0).view(1, 1, 3000, 1)
    ddf = torch.full((1, 2, 3000, 1), 0.25, dtype=dtype)

    warped = warp(image, ddf)
    first = sample(image, ddf)

    torch.testing.assert_close(warped[0, 0, :-1, 0], torch.arange(2999.0) + 0.25, rtol=0, atol=1e-3)
    torch.testing.assert_close(first, torch.full_like(image, 0.25), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_the_scripted_warp_is_the_warp(size, mode, padding, plain):
    image, ddf = torch.randn(2, 2, *size), 2 * torch.randn(2, len(size), *size)

    scripted = torch.jit.script(warp)(image, ddf, mode, padding)

    torch.testing.assert_close(scripted, plain(lambda: warp(image, ddf, mode, padding)), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(7, 5, 9), (1, 4, 6), (3, 1, 1)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_compiled_values_are_the_plain_ones(size, threads, compiled, plain):
    image, coordinates = torch.randn(2, 3, *size), coordinates_in_and_around(size, (4, 8, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    values = compiled(lambda: sample(image, coordinates))

    torch.set_num_threads(before)
    torch.testing.assert_close(values, plain(lambda: sample(image, coordinates)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_coordinates_that_are_no_place_do_not_leave_the_image(wrong, compiled):
    image = torch.rand(1, 2, 4, 5, 6)

    values = compiled(lambda: sample(image, torch.full((1, 3, 2, 2, 2), wrong)))

    assert not ((values < 0) | (values > 1)).any()


def test_a_meta_tensor_stays_one():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    image, ddf = torch.rand(1, 2, 4, 5, 6), torch.rand(1, 3, 4, 5, 6)

    warped = warp(MetaTensor(image, affine=affine), ddf)

    assert isinstance(warped, MetaTensor)
    torch.testing.assert_close(warped.affine, affine)
    torch.testing.assert_close(warped.as_tensor(), warp(image, ddf), rtol=0, atol=2e-5)


def test_the_gradient_along_a_ramp_is_its_slope():
    slope = torch.tensor([2.0, -3.0, 0.5]).view(1, 3, 1, 1, 1)
    ramp = (slope * identity_grid([6, 7, 8], slope)).sum(1, keepdim=True)
    coordinates = (identity_grid([5, 6, 7], slope) + 0.3).requires_grad_()

    sample(ramp, coordinates).sum().backward()

    torch.testing.assert_close(coordinates.grad, slope.expand_as(coordinates), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_the_gradient_of_the_image_is_the_adjoint_of_sampling(mode):
    image = torch.randn(2, 2, 6, 5, 7, requires_grad=True)
    coordinates = coordinates_in_and_around((6, 5, 7), (4, 4, 4))
    weights = torch.randn(2, 2, 4, 4, 4)

    inner = (sample(image, coordinates, mode) * weights).sum()
    inner.backward()

    torch.testing.assert_close((image.detach() * image.grad).sum(), inner.detach(), rtol=1e-4, atol=1e-4)


def test_nearest_blocks_the_gradient_of_the_coordinates():
    coordinates = identity_grid([4, 5], torch.zeros(1)).requires_grad_()

    assert not sample(torch.randn(1, 1, 4, 5), coordinates, "nearest").requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "cubic"}, "mode must be 'bilinear' or 'nearest', got 'cubic'"),
        ({"padding": "reflection"}, "padding must be 'border' or 'zeros', got 'reflection'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        warp(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), **options)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4, 4), (1, 3, 4, 4), (1, 4, 4, 4, 4)])
def test_a_field_needs_one_channel_per_axis_of_the_image(shape):
    with pytest.raises(ValueError, match=r"one channel per spatial axis of the image \[1, 1, 4, 4, 4\]"):
        sample(torch.zeros(1, 1, 4, 4, 4), torch.zeros(shape))
