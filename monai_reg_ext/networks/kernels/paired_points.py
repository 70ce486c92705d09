# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT

__all__ = ["block_length", "memory_offsets", "row_inside"]


@njit(**JIT)
def memory_offsets(shifts, size):  # type: ignore[no-untyped-def]
    """Displacements ``(l, 3)`` as distances in a grid's memory."""
    return (shifts[:, 0] * size[1] + shifts[:, 1]) * size[2] + shifts[:, 2]


@njit(**JIT)
def row_inside(i, j, shift_i, shift_j, shift_k, size):  # type: ignore[no-untyped-def]
    """First and last but one point of a row whose target lies inside the grid."""
    if 0 <= i + shift_i < size[0] and 0 <= j + shift_j < size[1]:
        return max(0, -shift_k), max(0, min(size[2], size[2] - shift_k))
    return size[2], size[2]


@njit(**JIT)
def block_length(extent, longest):  # type: ignore[no-untyped-def]
    """Of blocks of equal length, so that none is much shorter than the others."""
    blocks = max(1, (extent + longest - 1) // longest)
    return max(1, (extent + blocks - 1) // blocks)
