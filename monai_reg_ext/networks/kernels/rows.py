# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT

__all__ = ["add_both", "add_row", "copy_row", "fill_row", "scale_row"]

# Loops instead of slice assignments and array expressions: those make numba compile for many seconds.


@njit(**JIT)
def fill_row(target, value):  # type: ignore[no-untyped-def]
    for k in range(len(target)):
        target[k] = value


@njit(**JIT)
def copy_row(source, target):  # type: ignore[no-untyped-def]
    """The first values of a row, as many as the target has."""
    for k in range(len(target)):
        target[k] = source[k]


@njit(**JIT)
def scale_row(target, factors):  # type: ignore[no-untyped-def]
    """Multiply the first values of a row, as many as there are factors."""
    for k in range(len(factors)):
        target[k] *= factors[k]


@njit(**JIT)
def add_both(target, one, other):  # type: ignore[no-untyped-def]
    for k in range(len(target)):
        target[k] += one[k] + other[k]


@njit(**JIT)
def add_row(target, one):  # type: ignore[no-untyped-def]
    for k in range(len(target)):
        target[k] += one[k]
