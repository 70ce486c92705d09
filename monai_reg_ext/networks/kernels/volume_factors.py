# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.rows import scale_row
from monai_reg_ext.networks.kernels.runtime import JIT

__all__ = ["scale_volume", "volume_factors"]


def volume_factors(weights: torch.Tensor | None, directions: int) -> np.ndarray:
    """Factors ``(B, directions, i, j, k)``; without weights ``(1, directions, 0, 0, 0)``, which scale nothing."""
    if weights is None:
        return np.empty((1, directions, 0, 0, 0), np.float32)
    return np.ascontiguousarray(weights[:, 0].unflatten(0, (directions, -1)).transpose(0, 1).numpy())


@njit(**JIT)
def scale_volume(volume, factors):  # type: ignore[no-untyped-def]
    for i in range(factors.shape[0]):
        for j in range(factors.shape[1]):
            scale_row(volume[i, j], factors[i, j])
