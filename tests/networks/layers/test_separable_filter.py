# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from monai_reg_ext.networks.layers import gaussian_taps, separable_filter

SIZES = [(13,), (5, 9), (7, 4, 10)]


@pytest.mark.parametrize("size", SIZES)
def test_scipy_correlates_one_axis_after_the_other_to_the_same(size):
    volume = torch.randn(2, 3, *size, dtype=torch.float64)
    taps = [None if len(size) == 3 and axis == 1 else np.random.default_rng(axis).normal(size=5) for axis in range(3)]
    taps = taps[: len(size)]

    result = separable_filter(volume, taps)

    expected = volume.numpy()
    for axis, weights in enumerate(taps, start=2):
        expected = expected if weights is None else correlate1d(expected, weights, axis, mode="nearest")
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


def test_weights_longer_than_the_volume_see_its_border():
    volume = torch.tensor([2.0, 5.0])[None, None]

    result = separable_filter(volume, [[1.0, 0, 0, 0, 0, 0, 10.0]])

    assert result.flatten().tolist() == [2 + 50, 2 + 50]


def test_the_compiled_filter_is_that_of_torch(compiled, plain):
    volume = torch.randn(2, 2, 6, 11, 9)
    taps = [(1.0, -8.0, 0.5, 8.0, -2.0), None, gaussian_taps(1.4)]

    torch.testing.assert_close(
        compiled(lambda: separable_filter(volume, taps)), plain(lambda: separable_filter(volume, taps))
    )


def test_gradients_are_right():
    volume = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    taps = [(1.0, 2.0, -1.0), (0.5, 1.0, 3.0, 1.0, 2.0)]

    assert torch.autograd.gradcheck(lambda x: separable_filter(x, taps), volume)


def test_a_gaussian_of_1_4_voxels_has_seven_weights_that_add_up_to_one():
    taps = gaussian_taps(1.4)

    assert len(taps) == 7
    assert sum(taps) == pytest.approx(1)
    assert taps[2] / taps[3] == pytest.approx(np.exp(-0.5 / 1.4**2))
    assert taps == taps[::-1]


@pytest.mark.parametrize("taps", [[(1.0, 2.0), None], [(1.0,)], [None, None, None]])
def test_weights_that_do_not_fit_the_axes_are_refused(taps):
    with pytest.raises(ValueError, match="odd number of weights or None for each"):
        separable_filter(torch.zeros(1, 1, 4, 5), taps)


def test_a_gaussian_without_width_is_refused():
    with pytest.raises(ValueError, match="must be > 0, got 0"):
        gaussian_taps(0)
