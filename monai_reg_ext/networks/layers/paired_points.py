# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["paired_points", "slabs_outside"]


def paired_points(displacement: Sequence[int], size: Sequence[int]) -> tuple[slice, slice]:
    """Flattened points *x* and *x + d*, both in the grid's memory; a superset of the points whose target is inside."""
    offset = (displacement[0] * size[1] + displacement[1]) * size[2] + displacement[2]
    points = size[0] * size[1] * size[2]
    length = max(0, points - abs(offset))
    here, there = max(0, -offset), max(0, offset)
    return slice(here, here + length), slice(there, there + length)


def slabs_outside(displacement: Sequence[int], size: Sequence[int]) -> Iterator[tuple]:
    """The slabs of points whose target lies outside the grid."""
    for axis, shift in enumerate(displacement):
        slab = slice(max(0, size[axis] - shift), None) if shift > 0 else slice(0, -shift)
        if shift != 0:
            yield (..., *(slab if other == axis else slice(None) for other in range(3)))
