# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.rows import fill_row, scale_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["pooled_products"]


def pooled_products(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    rows: torch.Tensor,
    spacing: Sequence[int],
    fixed_weight: torch.Tensor | None,
    moving_weight: torch.Tensor | None,
    coupled: bool,
) -> torch.Tensor:
    """The normal equations' products of slopes and differences, shared with the control points along two axes.

    Walks through the planes of voxels and keeps three warped ones. Everything is a row along the last axis, whose own
    interpolation, before and after, is the caller's: rows of voxels there, of control points along the other axes.

    Args:
        fixed: ``(B, F, I, J, K)`` float32, CPU.
        moving: ``(B, F, *any)``.
        rows: ``(B, 3, i, j, K)``, displacements in voxels.
        spacing: voxels per cell along axes 0 and 1.
        fixed_weight: ``(B, 1, I, J, K)``.
        moving_weight: ``(B, 1, *any)``, on the grid of ``moving``.
        coupled: all six entries of the matrices, or the three of their diagonal.

    Returns:
        ``(B, 9, i, j, K)`` or ``(B, 6, i, j, K)``: the matrices' entries, then the right sides.
    """
    result = fixed.new_zeros((len(fixed), 9 if coupled else 6, *rows.shape[2:]))
    no_weight = fixed[:, :0]
    weights = [no_weight if weight is None else weight for weight in (fixed_weight, moving_weight)]
    volumes = [volume.detach().contiguous().numpy() for volume in (fixed, moving, rows, *weights)]
    taps = tuple(_taps(*of_axis) for of_axis in zip(spacing, fixed.shape[2:4], rows.shape[2:4], strict=True))
    share = np.float32(1 / (spacing[0] * spacing[1]))
    for item, sums in enumerate(result.numpy()):
        of_item = [volume[item] for volume in volumes]
        in_threads(partial(_pool_part, *of_item, *taps, share, coupled, sums), len(taps[0][3]) - 1)
    return result


def _taps(step: int, extent: int, cells: int) -> tuple[np.ndarray, ...]:
    """For each voxel the control points before and behind it and the latter's share; where those of a point begin."""
    position = np.clip((np.arange(extent) + 0.5) / step - 0.5, 0, cells - 1)
    lower = np.minimum(position.astype(np.int64), max(cells - 2, 0))
    upper = np.minimum(lower + 1, cells - 1)
    return lower, upper, (position - lower).astype(np.float32), np.searchsorted(lower, np.arange(cells + 1))


@njit(**JIT)
def _pool_part(  # type: ignore[no-untyped-def]
    fixed, moving, rows, fixed_weight, moving_weight, taps_i, taps_j, share, coupled, result, start, stop
):
    """What the control points of some planes get from the voxels that they reach."""
    channels, size_i, size_j, size_k = fixed.shape
    shifts = np.empty((3, size_k), np.float32)
    offset = np.empty(size_k, np.uint64)
    factors = np.empty((8, size_k), np.float32)
    sums = np.empty((2, len(result), size_k), np.float32)
    warped = np.empty((3, channels + len(moving_weight), size_j, size_k), np.float32)
    lower, upper, far, begins = taps_i
    first, last = begins[max(start - 1, 0)], begins[stop]
    ready = max(first - 1, 0)
    for i in range(first, last):
        while ready <= min(i + 1, size_i - 1):
            _warp_plane(moving, moving_weight, rows, ready, taps_i, taps_j, shifts, offset, warped[ready % 3])
            ready += 1
        planes = warped[max(i - 1, 0) % 3], warped[i % 3], warped[min(i + 1, size_i - 1) % 3]
        near_share, far_share = share * (np.float32(1) - far[i]), share * far[i]
        # what belongs to another part's plane is that part's own
        near_share = near_share if lower[i] >= start else np.float32(0)
        far_share = far_share if upper[i] < stop else np.float32(0)
        _pool_plane(
            fixed[:, i], planes, fixed_weight[:, i], taps_j, coupled,
            factors, sums, near_share, far_share, result[:, lower[i]], result[:, upper[i]],
        )  # fmt: skip


@njit(**JIT)
def _warp_plane(moving, weight, rows, i, taps_i, taps_j, shifts, offset, warped):  # type: ignore[no-untyped-def]
    """Features, behind them their weight, where one plane of voxels looks for them."""
    channels, size_i, size_j, size_k = moving.shape
    steps = np.uint64(size_j * size_k), np.uint64(size_k), np.uint64(1)
    near, behind, far = taps_i[0][i], taps_i[1][i], taps_i[2][i]
    # a single voxel is its own neighbour
    to_i, to_j, to_k = np.uint64(size_i > 1) * steps[0], np.uint64(size_j > 1) * steps[1], np.uint64(size_k > 1)
    for j in range(warped.shape[1]):
        left, right, far_j = taps_j[0][j], taps_j[1][j], taps_j[2][j]
        for axis in range(3):
            of_axis = rows[axis]
            _blend_rows(
                of_axis[near, left], of_axis[near, right], of_axis[behind, left], of_axis[behind, right],
                far, far_j, shifts[axis],
            )  # fmt: skip
        fill_row(offset, 0)
        _locate_row(i, 0, size_i, steps[0], shifts[0], offset)
        _locate_row(j, 0, size_j, steps[1], shifts[1], offset)
        _locate_row(0, 1, size_k, steps[2], shifts[2], offset)
        for c in range(channels):
            _sample_row(moving[c].reshape(-1), offset, to_i, to_j, to_k, shifts, warped[c, j])
        for c in range(len(weight)):
            _sample_row(weight[c].reshape(-1), offset, to_i, to_j, to_k, shifts, warped[channels + c, j])


@njit(**JIT)
def _blend_rows(a, b, c, d, far_i, far_j, out):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        near = a[k] + far_j * (b[k] - a[k])
        out[k] = near + far_i * (c[k] + far_j * (d[k] - c[k]) - near)


@njit(**JIT)
def _locate_row(first, step, size, stride, shifts, offset):  # type: ignore[no-untyped-def]
    """Offsets of the lower neighbours, to those of other axes; displacements become distances from there."""
    last, before_last = np.float32(size - 1), np.int32(max(size - 2, 0))
    for k in range(len(shifts)):
        position = np.float32(first + step * k) + shifts[k]
        # written so that what is not a number lies at the border too
        position = position if position > np.float32(0) else np.float32(0)
        position = position if position < last else last
        lower = min(np.int32(position), before_last)
        shifts[k] = position - np.float32(lower)
        offset[k] += np.uint64(lower) * stride


@njit(**JIT)
def _sample_row(flat, offset, to_i, to_j, to_k, distance, out):  # type: ignore[no-untyped-def]
    of_i, of_j, of_k = distance[0], distance[1], distance[2]
    for k in range(len(out)):
        at = offset[k]
        v000, v001 = flat[at], flat[at + to_k]
        v010, v011 = flat[at + to_j], flat[at + to_j + to_k]
        at += to_i
        v100, v101 = flat[at], flat[at + to_k]
        v110, v111 = flat[at + to_j], flat[at + to_j + to_k]
        v00, v01 = v000 + of_k[k] * (v001 - v000), v010 + of_k[k] * (v011 - v010)
        v10, v11 = v100 + of_k[k] * (v101 - v100), v110 + of_k[k] * (v111 - v110)
        v0, v1 = v00 + of_j[k] * (v01 - v00), v10 + of_j[k] * (v11 - v10)
        out[k] = v0 + of_i[k] * (v1 - v0)


@njit(**JIT)
def _pool_plane(  # type: ignore[no-untyped-def]
    fixed, planes, fixed_weight, taps_j, coupled, factors, sums, near_share, far_share, near_result, far_result
):
    """Add the products of one plane of voxels to the planes of control points before and behind it."""
    before, here, after = planes
    channels, size_j = fixed.shape[:2]
    lower, upper, far, _ = taps_j
    slopes, weighted, weight = factors[:4], factors[:3], factors[7]
    is_weighted = len(fixed_weight) > 0 or len(here) > channels
    if is_weighted:
        weighted = factors[4:7]
    fill_row(sums.reshape(-1), 0)
    for j in range(size_j):
        if is_weighted:
            fill_row(weight, 1)
            for c in range(len(fixed_weight)):
                scale_row(weight, fixed_weight[c, j])
            for c in range(channels, len(here)):
                scale_row(weight, here[c, j])
        for c in range(channels):
            _subtract_rows(after[c, j], before[c, j], np.float32(0.5), slopes[0])
            _subtract_rows(here[c, min(j + 1, size_j - 1)], here[c, max(j - 1, 0)], np.float32(0.5), slopes[1])
            _slopes_along_row(here[c, j], slopes[2])
            _subtract_rows(fixed[c, j], here[c, j], np.float32(1), slopes[3])
            if is_weighted:
                for axis in range(3):
                    _multiply_rows(slopes[axis], weight, weighted[axis])
            _add_products(weighted, slopes, coupled, far[j], sums)
        if j + 1 == size_j or lower[j + 1] > lower[j]:
            for entry in range(sums.shape[1]):
                _add_scaled(sums[0, entry], near_share, near_result[entry, lower[j]])
                _add_scaled(sums[0, entry], far_share, far_result[entry, lower[j]])
                _add_scaled(sums[1, entry], near_share, near_result[entry, upper[j]])
                _add_scaled(sums[1, entry], far_share, far_result[entry, upper[j]])
            fill_row(sums.reshape(-1), 0)


@njit(**JIT)
def _add_products(weighted, slopes, coupled, far, sums):  # type: ignore[no-untyped-def]
    """Entries of the matrix row by row, then the right side, to the control points before and behind a row."""
    entry = 0
    for one in range(3):
        for other in range(one, 3 if coupled else one + 1):
            _add_product(weighted[one], slopes[other], far, sums[0, entry], sums[1, entry])
            entry += 1
    for one in range(3):
        _add_product(weighted[one], slopes[3], far, sums[0, entry + one], sums[1, entry + one])


@njit(**JIT)
def _add_product(one, other, far, near_sum, far_sum):  # type: ignore[no-untyped-def]
    near = np.float32(1) - far
    for k in range(len(one)):
        product = one[k] * other[k]
        near_sum[k] += near * product
        far_sum[k] += far * product


@njit(**JIT)
def _subtract_rows(one, other, factor, out):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] = factor * (one[k] - other[k])


@njit(**JIT)
def _multiply_rows(one, other, out):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] = one[k] * other[k]


@njit(**JIT)
def _slopes_along_row(row, out):  # type: ignore[no-untyped-def]
    last, half = len(row) - 1, np.float32(0.5)
    for k in range(1, last):
        out[k] = half * (row[k + 1] - row[k - 1])
    out[0] = half * (row[min(1, last)] - row[0])
    out[last] = half * (row[last] - row[max(last - 1, 0)])


@njit(**JIT)
def _add_scaled(values, factor, total):  # type: ignore[no-untyped-def]
    if factor > np.float32(0):
        for k in range(len(values)):
            total[k] += factor * values[k]
