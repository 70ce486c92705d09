# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT

__all__ = ["exp_below_zero"]


@njit(**JIT)
def exp_below_zero(x):  # type: ignore[no-untyped-def]
    """``exp(x)`` of a float32 ``x <= 0``, never below 1e-38; its relative error is 1e-7 times ``1 - x``.

    Unlike a call of the library's it is vectorised: ``2^n 2^f`` with a whole *n*, whose power is written into the
    exponent's bits, and ``f`` between -1/2 and 1/2, where a Taylor polynomial will do.
    """
    t = x * np.float32(1.4426950408889634)
    # in this form NaN passes
    t = np.float32(-126) if t < np.float32(-126) else t
    n = np.int32(t - np.float32(0.5))
    f = (t - np.float32(n)) * np.float32(0.6931471805599453)
    power = np.float32(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        power = power * f + np.float32(factor)
    return power * np.int32((n + 127) << 23).view(np.float32)
