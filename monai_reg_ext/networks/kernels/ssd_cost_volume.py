# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.banded_filter import Band, filter_planes
from monai_reg_ext.networks.kernels.paired_points import block_length, memory_offsets, row_inside
from monai_reg_ext.networks.kernels.rows import copy_row, fill_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads
from monai_reg_ext.networks.kernels.volume_factors import scale_volume, volume_factors

__all__ = ["write_ssd_chunk"]

_POINTS_IN_CACHE = 512
_LABELS_IN_CACHE = 9


def write_ssd_chunk(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    energy: torch.Tensor,
    displacements: torch.Tensor,
    bands: Sequence[Band],
    out: torch.Tensor,
    mask: torch.Tensor | None,
    normalizer: torch.Tensor | None,
) -> None:
    """Twin of :py:func:`monai_reg_ext.networks.layers.ssd_cost_volume.write_ssd_chunk`; smoothed while in the cache."""
    directions = len(out) // len(fixed)
    shifts = displacements.numpy()
    # whole arrays: numba makes vector instructions only where it knows that memory is contiguous
    features = fixed.flatten(2).numpy(), moving.flatten(2).numpy()
    factors = [volume_factors(weights, directions) for weights in (mask, normalizer)]
    for item in range(len(fixed)):
        of_item = energy.numpy(), *(weights[item % len(weights)] for weights in factors)

        def write(start: int, stop: int, item=item, of_item=of_item) -> None:  # type: ignore[no-untyped-def]
            _write_labels(*features, *of_item, shifts, *bands, item, start, stop, out.numpy())

        in_threads(write, len(shifts))


@njit(**JIT)
def _write_labels(  # type: ignore[no-untyped-def]
    fixed, moving, energy, mask, normalizer, shifts, band_i, band_j, band_k, item, start, stop, out
):
    size = energy.shape[1:]
    items, _, points = fixed.shape
    directions = len(out) // items
    offsets = memory_offsets(shifts, size)
    raw = np.empty((min(_LABELS_IN_CACHE, stop - start), directions, points), np.float32)
    for first in range(start, stop, _LABELS_IN_CACHE):
        last = min(first + _LABELS_IN_CACHE, stop)
        _write_squared_distances(fixed[item], moving[item], offsets[first:last], size[1] * size[2], raw)
        for label in range(first, last):
            both = raw[label - first]
            if directions > 1:
                here, there = max(0, -offsets[label]), max(0, offsets[label])
                copy_row(both[0, here:], both[1, there : there + max(0, points - abs(offsets[label]))])
            for direction in range(directions):
                volume, smooth = both[direction].reshape(size), out[item + direction * items, label]
                _copy_outside(energy[item + direction * items], shifts[label], 1 - 2 * direction, volume)
                scale_volume(volume, mask[direction])
                filter_planes(volume, band_i, band_j, band_k, 0, size[0], smooth)
                scale_volume(smooth, normalizer[direction])


@njit(**JIT)
def _write_squared_distances(fixed, moving, offsets, plane, raw):  # type: ignore[no-untyped-def]
    """Of some labels, of every pair of points in the grid's memory, to ``raw[label, 0]``.

    A part of all planes after the other, each for all labels: neighbouring ones, which differ by whole planes, find the
    features in the cache.
    """
    points = fixed.shape[1]
    length = block_length(plane, _POINTS_IN_CACHE)
    for start in range(0, plane, length):
        for begin in range(start, points, plane):
            end = min(begin + length, begin - start + plane)
            for label in range(len(offsets)):
                here, there = max(begin, -offsets[label]), min(end, points - offsets[label])
                if here < there:
                    _write_squared_distance(fixed, moving, here, here + offsets[label], raw[label, 0, here:there])


@njit(**JIT)
def _write_squared_distance(fixed, moving, here, there, out):  # type: ignore[no-untyped-def]
    fill_row(out, 0)
    for c in range(len(fixed)):
        one, other = fixed[c, here : here + len(out)], moving[c, there : there + len(out)]
        for x in range(len(out)):
            difference = one[x] - other[x]
            out[x] += difference * difference


@njit(**JIT)
def _copy_outside(energy, shift, sign, out):  # type: ignore[no-untyped-def]
    """Points whose target lies outside the grid cost what their features weigh."""
    for i in range(len(out)):
        for j in range(out.shape[1]):
            begin, end = row_inside(i, j, sign * shift[0], sign * shift[1], sign * shift[2], out.shape)
            copy_row(energy[i, j], out[i, j, :begin])
            copy_row(energy[i, j, end:], out[i, j, end:])
