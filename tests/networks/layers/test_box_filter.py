# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from monai_reg_ext.networks.layers.box_filter import box_filter, box_filter_adjoint


def mean_of_existing_neighbours(volume, radius):
    """Plain loop: every voxel becomes the mean of the part of its cube that lies inside."""
    result = np.empty_like(volume)
    for position in itertools.product(*map(range, volume.shape)):
        cube = tuple(slice(max(p - radius, 0), p + radius + 1) for p in position)
        result[position] = volume[cube].mean()
    return result


@pytest.mark.parametrize("widths", [(3,), (5, 3), (3, 1, 3), (11,)])
def test_the_default_averages_the_voxels_that_exist(widths):
    volume = torch.randn(2, 2, 6, 4, 5, dtype=torch.float64)

    result = box_filter(volume, widths)

    slow = volume.numpy()
    for width in widths:
        slow = np.stack([np.stack([mean_of_existing_neighbours(c, width // 2) for c in item]) for item in slow])
    np.testing.assert_allclose(result.numpy(), slow, atol=1e-12)


@pytest.mark.parametrize("widths", [(3,), (5, 3), (3, 3, 3), (9,)])
@pytest.mark.parametrize("size", [(6, 4, 5), (8, 3)])
def test_compat_is_scipys_uniform_filter_with_zeros_outside(widths, size):
    volume = torch.randn(2, 2, *size, dtype=torch.float64)

    result = box_filter(volume, widths, compat=True)

    slow = volume.numpy()
    for width in widths:
        slow = uniform_filter(slow, (0, 0, *[width] * len(size)), mode="constant")
    np.testing.assert_allclose(result.numpy(), slow, atol=1e-12)


def test_the_default_keeps_a_constant_which_compat_shrinks_at_faces_edges_and_corners():
    constant = torch.full((1, 1, 5, 6, 7), 3.0)

    exact, reference = box_filter(constant)[0, 0], box_filter(constant, compat=True)[0, 0]

    torch.testing.assert_close(exact, constant[0, 0])
    shrunk = torch.stack([reference[2, 3, 3], reference[0, 3, 3], reference[2, 0, 6], reference[4, 5, 6]])
    torch.testing.assert_close(shrunk, 3 * torch.tensor([1, 2 / 3, 4 / 9, 8 / 27]))


def test_no_width_or_width_one_changes_nothing():
    volume = torch.randn(1, 2, 4, 5, 6)

    assert torch.equal(box_filter(volume, ()), volume)
    assert torch.equal(box_filter(volume, (1, 1)), volume)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_input_stays_as_it_was_and_the_type_is_kept(compat, dtype):
    volume = torch.randn(1, 1, 4, 5, 6).to(dtype)
    before = volume.clone()

    result = box_filter(volume, compat=compat)

    assert result.dtype == dtype
    assert torch.equal(volume, before)


@pytest.mark.parametrize("compat", [False, True])
def test_the_gradient_is_that_of_the_filter(compat):
    volume = torch.randn(1, 2, 4, 3, 5, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda v: box_filter(v, (3, 5), compat), volume)


@pytest.mark.parametrize("widths", [(3,), (5, 3), (3, 3, 3), (9,)])
@pytest.mark.parametrize("compat", [False, True])
def test_the_adjoint_is_the_transpose(widths, compat):
    one, other = torch.randn(2, 2, 3, 6, 4, 5, dtype=torch.float64)

    filtered, transposed = box_filter(one, widths, compat), box_filter_adjoint(other, widths, compat)

    torch.testing.assert_close((filtered * other).sum(), (one * transposed).sum())


@pytest.mark.parametrize("widths", [(3,), (3, 3, 3), (5, 1, 3), (9,)])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("size", [(6, 4, 5), (1, 2, 17), (40, 3, 1)])
@pytest.mark.parametrize("filtered", [box_filter, box_filter_adjoint])
def test_the_compiled_filter_is_the_plain_one(filtered, size, widths, compat, compiled):
    volume = torch.randn(2, 3, *size)

    result = compiled(lambda: filtered(volume, widths, compat))

    plain = filtered(volume.double(), widths, compat)
    torch.testing.assert_close(result, plain.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("widths", [(2,), (3, 4), (0,), (-3,)])
def test_even_or_empty_boxes_are_refused(widths):
    with pytest.raises(ValueError, match=r"odd and positive, got \("):
        box_filter(torch.zeros(1, 1, 4, 4, 4), widths)
