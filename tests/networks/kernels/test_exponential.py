# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed: there are no compiled kernels")

from monai_reg_ext.networks.kernels.exponential import exp_below_zero


def exponentials(x):
    return np.array([exp_below_zero(value) for value in np.float32(x)])


def test_the_relative_error_is_within_its_bound():
    x = np.concatenate([np.linspace(-87, 0, 5001), np.log(2) * np.arange(-20, 1) / 2]).astype(np.float32)

    error = exponentials(x) / np.exp(x.astype(np.float64)) - 1

    assert (np.abs(error) <= 1.2e-7 * (1 - x)).all()


def test_zero_gives_one_and_rounding_above_it_does_no_harm():
    np.testing.assert_allclose(exponentials([0, 1e-6, 1e-3]), np.exp([0, 1e-6, 1e-3]), rtol=2e-7)


def test_far_below_there_is_next_to_nothing_and_what_is_no_number_stays_none():
    tiny = exponentials([-88, -1e9, -np.inf])

    assert (tiny > 0).all()
    assert (tiny < 1.2e-38).all()
    assert np.isnan(exponentials([np.nan])).all()
