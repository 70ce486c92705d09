# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.banded_filter import Band, filter_planes
from monai_reg_ext.networks.kernels.rows import copy_row, fill_row, scale_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["write_ssd_chunk"]

_POINTS_IN_CACHE = 2048


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
    energies = energy.unflatten(0, (directions, -1)).numpy()
    costs = out.unflatten(0, (directions, -1)).numpy()
    shifts = displacements.numpy()
    factors = [_factors(weights, directions) for weights in (mask, normalizer)]
    for item in range(len(fixed)):
        pair = fixed[item].flatten(1).numpy(), moving[item].flatten(1).numpy()
        of_item = energies[:, item], *(weights[item % len(weights)] for weights in factors)

        def write(start: int, stop: int, pair=pair, of_item=of_item, cost=costs[:, item]) -> None:  # type: ignore[no-untyped-def]
            _write_labels(*pair, *of_item, shifts, *bands, start, stop, cost)

        in_threads(write, len(shifts))


def _factors(weights: torch.Tensor | None, directions: int) -> np.ndarray:
    """Factors ``(B, directions, i, j, k)``; without weights ``(1, directions, 0, 0, 0)``, which scale nothing."""
    if weights is None:
        return np.empty((1, directions, 0, 0, 0), np.float32)
    return np.ascontiguousarray(weights[:, 0].unflatten(0, (directions, -1)).transpose(0, 1).numpy())


@njit(**JIT)
def _write_labels(  # type: ignore[no-untyped-def]
    fixed, moving, energy, mask, normalizer, shifts, band_i, band_j, band_k, start, stop, out
):
    directions, size = len(out), energy.shape[1:]
    points = fixed.shape[1]
    raw = np.empty((directions, points), np.float32)
    for label in range(start, stop):
        offset = (shifts[label, 0] * size[1] + shifts[label, 1]) * size[2] + shifts[label, 2]
        here, there, length = max(0, -offset), max(0, offset), max(0, points - abs(offset))
        _write_squared_distance(
            fixed[:, here : here + length], moving[:, there : there + length], raw[0, here : here + length]
        )
        if directions > 1:
            copy_row(raw[0, here:], raw[1, there : there + length])
        for direction in range(directions):
            volume = raw[direction].reshape(size)
            sign = 1 - 2 * direction
            _copy_outside(
                energy[direction], sign * shifts[label, 0], sign * shifts[label, 1], sign * shifts[label, 2], volume
            )
            _scale(volume, mask[direction])
            filter_planes(volume, band_i, band_j, band_k, 0, size[0], out[direction, label])
            _scale(out[direction, label], normalizer[direction])


@njit(**JIT)
def _write_squared_distance(fixed, moving, out):  # type: ignore[no-untyped-def]
    for start in range(0, len(out), _POINTS_IN_CACHE):
        part = out[start : start + _POINTS_IN_CACHE]
        fill_row(part, 0)
        for c in range(len(fixed)):
            one, other = fixed[c, start : start + len(part)], moving[c, start : start + len(part)]
            for x in range(len(part)):
                difference = one[x] - other[x]
                part[x] += difference * difference


@njit(**JIT)
def _scale(volume, factors):  # type: ignore[no-untyped-def]
    for i in range(factors.shape[0]):
        for j in range(factors.shape[1]):
            scale_row(volume[i, j], factors[i, j])


@njit(**JIT)
def _copy_outside(energy, shift_i, shift_j, shift_k, out):  # type: ignore[no-untyped-def]
    """Points whose target lies outside the grid cost what their features weigh."""
    size_i, size_j, size_k = energy.shape
    for i in range(size_i):
        for j in range(size_j):
            if 0 <= i + shift_i < size_i and 0 <= j + shift_j < size_j:
                begin, end = max(0, -shift_k), max(0, min(size_k, size_k - shift_k))
                copy_row(energy[i, j], out[i, j, :begin])
                copy_row(energy[i, j, end:], out[i, j, end:])
            else:
                copy_row(energy[i, j], out[i, j])
