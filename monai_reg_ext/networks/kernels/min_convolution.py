# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.rows import copy_row, fill_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["min_convolution", "min_convolution_gradient"]

_POINTS_IN_CACHE = 48
_TAPS = (np.float32(1 / 9), np.float32(2 / 9), np.float32(3 / 9), np.float32(2 / 9), np.float32(1 / 9))


def min_convolution(cost: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
    """Twin of :py:func:`monai_reg_ext.networks.layers.min_convolution`, for ``(B, l_0, l_1, l_2, i, j, k)``.

    The result may take the place of the costs.
    """
    source = cost.contiguous().flatten(4).numpy()
    # numpy's memory comes in huge pages, where the system has them
    out = source if overwrite else np.empty_like(source)
    for of_item in zip(source, out, strict=True):

        def work(start: int, stop: int, of_item=of_item) -> None:  # type: ignore[no-untyped-def]
            _convolve(of_item[0], start, stop, of_item[1])

        in_threads(work, source.shape[-1], _POINTS_IN_CACHE)
    return torch.from_numpy(out).view(cost.shape)


def min_convolution_gradient(cost: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient with respect to the cost; of equal neighbours the first in order takes it."""
    source, slopes = (tensor.contiguous().flatten(4).numpy() for tensor in (cost, gradient))
    out = np.empty_like(source)
    for of_item in zip(source, slopes, out, strict=True):

        def work(start: int, stop: int, of_item=of_item) -> None:  # type: ignore[no-untyped-def]
            _pull_back(*of_item[:2], start, stop, of_item[2])

        in_threads(work, source.shape[-1], _POINTS_IN_CACHE)
    return torch.from_numpy(out).view(cost.shape)


@njit(**JIT)
def _convolve(cost, start, stop, out):  # type: ignore[no-untyped-def]
    """Minima along all axes, then averages along all axes, of a few points after the other."""
    l_0, l_1, l_2, _ = cost.shape
    one = np.empty((l_0 + 2) * (l_1 + 2) * (l_2 + 2) * _POINTS_IN_CACHE, np.float32)
    other = np.empty_like(one)
    for begin in range(start, stop, _POINTS_IN_CACHE):
        count = min(_POINTS_IN_CACHE, stop - begin)
        _load(cost, begin, count, one)
        _minima(one, l_0 * l_1, l_2, count, other)
        _minima(other, l_0, l_1, (l_2 + 2) * count, one)
        _minima(one, 1, l_0, (l_1 + 2) * (l_2 + 2) * count, other)
        _averages(other, 1, l_0, (l_1 + 2) * (l_2 + 2) * count, one)
        _averages(one, l_0, l_1, (l_2 + 2) * count, other)
        _averages(other, l_0 * l_1, l_2, count, one)
        _store(one, begin, count, out)


@njit(**JIT)
def _pull_back(cost, gradient, start, stop, out):  # type: ignore[no-untyped-def]
    l_0, l_1, l_2, _ = cost.shape
    values = (l_0 + 2) * (l_1 + 2) * (l_2 + 2) * _POINTS_IN_CACHE
    raw, first, second = np.empty(values, np.float32), np.empty(values, np.float32), np.empty(values, np.float32)
    one, other = np.empty(values, np.float32), np.empty(values, np.float32)
    for begin in range(start, stop, _POINTS_IN_CACHE):
        count = min(_POINTS_IN_CACHE, stop - begin)
        _load(cost, begin, count, raw)
        _minima(raw, l_0 * l_1, l_2, count, first)
        _minima(first, l_0, l_1, (l_2 + 2) * count, second)
        _load(gradient, begin, count, one)
        _spread_averages(one, l_0 * l_1, l_2, count, other)
        _spread_averages(other, l_0, l_1, (l_2 + 2) * count, one)
        _spread_averages(one, 1, l_0, (l_1 + 2) * (l_2 + 2) * count, other)
        _spread_minima(other, second, 1, l_0, (l_1 + 2) * (l_2 + 2) * count, one)
        _spread_minima(one, first, l_0, l_1, (l_2 + 2) * count, other)
        _spread_minima(other, raw, l_0 * l_1, l_2, count, one)
        _store(one, begin, count, out)


@njit(**JIT)
def _load(volume, begin, count, out):  # type: ignore[no-untyped-def]
    rows = volume.reshape(-1, volume.shape[3])
    for row in range(len(rows)):
        copy_row(rows[row, begin : begin + count], out[row * count : (row + 1) * count])


@njit(**JIT)
def _store(source, begin, count, out):  # type: ignore[no-untyped-def]
    rows = out.reshape(-1, out.shape[3])
    for row in range(len(rows)):
        copy_row(source[row * count : (row + 1) * count], rows[row, begin : begin + count])


# Along the middle one of three axes, ``(outer, extent, inner)``, neighbours lie ``inner`` apart. Everywhere but at the
# ends that is the same for all, so that one loop goes over many rows. Short loops are slow, and so are loops over many
# arrays.


@njit(**JIT)
def _minima(source, outer, extent, inner, out):  # type: ignore[no-untyped-def]
    """Of three neighbours, of which those exist count, from one before the first to one behind the last."""
    last, middle = (extent - 1) * inner, max(0, extent - 2) * inner
    for block in range(outer):
        values, minima = source[block * extent * inner :], out[block * (extent + 2) * inner :]
        copy_row(values, minima[:inner])
        copy_row(values[last:], minima[last + 2 * inner : last + 3 * inner])
        _write_least(values, values, values[min(last, inner) :], minima[inner : 2 * inner])
        _write_least(values, values[inner:], values[2 * inner :], minima[2 * inner : 2 * inner + middle])
        if extent > 1:
            _write_least(values[last - inner :], values[last:], values[last:], minima[last + inner : last + 2 * inner])


@njit(**JIT)
def _write_least(low, middle, high, out):  # type: ignore[no-untyped-def]
    for x in range(len(out)):
        out[x] = min(low[x], min(middle[x], high[x]))


@njit(**JIT)
def _spread_minima(gradient, source, outer, extent, inner, out):  # type: ignore[no-untyped-def]
    """The transpose of ``_minima``: every gradient goes to the least of the three."""
    size, last, middle = extent * inner, (extent - 1) * inner, max(0, extent - 2) * inner
    for block in range(outer):
        values, slopes = source[block * size :], gradient[block * (extent + 2) * inner :]
        target = out[block * size : (block + 1) * size]
        fill_row(target, 0)
        _add(slopes, target[:inner])
        _add(slopes[last + 2 * inner :], target[last:])
        if extent == 1:
            _add(slopes[inner:], target)
            continue
        _give_to_low(slopes[inner:], values, values, values[inner:], target[:inner])
        _give_to_high(slopes[inner:], values, values, values[inner:], target[inner : 2 * inner])
        _give_to_low(slopes[2 * inner :], values, values[inner:], values[2 * inner :], target[:middle])
        _give_to_middle(
            slopes[2 * inner :], values, values[inner:], values[2 * inner :], target[inner : inner + middle]
        )
        _give_to_high(
            slopes[2 * inner :], values, values[inner:], values[2 * inner :], target[2 * inner : 2 * inner + middle]
        )
        before = last - inner
        _give_to_low(slopes[last + inner :], values[before:], values[last:], values[last:], target[before:last])
        _give_to_high(slopes[last + inner :], values[before:], values[before:], values[last:], target[last:])


@njit(**JIT)
def _add(slope, to):  # type: ignore[no-untyped-def]
    for x in range(len(to)):
        to[x] += slope[x]


@njit(**JIT)
def _give_to_low(slope, low, middle, high, to):  # type: ignore[no-untyped-def]
    for x in range(len(to)):
        to[x] += slope[x] if low[x] <= min(middle[x], high[x]) else np.float32(0)


@njit(**JIT)
def _give_to_middle(slope, low, middle, high, to):  # type: ignore[no-untyped-def]
    for x in range(len(to)):
        to[x] += slope[x] if (middle[x] < low[x]) & (middle[x] <= high[x]) else np.float32(0)


@njit(**JIT)
def _give_to_high(slope, low, middle, high, to):  # type: ignore[no-untyped-def]
    for x in range(len(to)):
        to[x] += slope[x] if high[x] < min(low[x], middle[x]) else np.float32(0)


@njit(**JIT)
def _averages(source, outer, extent, inner, out):  # type: ignore[no-untyped-def]
    """Weighted means of five, of ``extent + 2`` whose outermost repeat."""
    last, middle = (extent - 1) * inner, max(0, extent - 2) * inner
    for block in range(outer):
        values, means = source[block * (extent + 2) * inner :], out[block * extent * inner :]
        fourth = values[min(3, extent + 1) * inner :]
        _write_mean(values, values, values[inner:], values[2 * inner :], fourth, means[:inner])
        a, b, c, d = values[inner:], values[2 * inner :], values[3 * inner :], values[4 * inner :]
        _write_mean(values, a, b, c, d, means[inner : inner + middle])
        if extent > 1:
            b, c, d = values[last:], values[last + inner :], values[last + 2 * inner :]
            _write_mean(values[last - inner :], b, c, d, d, means[last : last + inner])


@njit(**JIT)
def _write_mean(a, b, c, d, e, out):  # type: ignore[no-untyped-def]
    for x in range(len(out)):
        out[x] = _TAPS[0] * (a[x] + e[x]) + _TAPS[1] * (b[x] + d[x]) + _TAPS[2] * c[x]


@njit(**JIT)
def _spread_averages(gradient, outer, extent, inner, out):  # type: ignore[no-untyped-def]
    """The transpose of ``_averages``."""
    size, padded = extent * inner, (extent + 2) * inner
    for block in range(outer):
        slopes, target = gradient[block * size : (block + 1) * size], out[block * padded : (block + 1) * padded]
        fill_row(target, 0)
        _add_weighted(slopes, _TAPS[0], target[:inner])
        _add_weighted(slopes[inner:], _TAPS[0], target[: size - inner])
        _add_weighted(slopes, _TAPS[1], target[:size])
        _add_weighted(slopes, _TAPS[2], target[inner : inner + size])
        _add_weighted(slopes, _TAPS[3], target[2 * inner :])
        _add_weighted(slopes, _TAPS[4], target[3 * inner :])
        _add_weighted(slopes[size - inner :], _TAPS[4], target[padded - inner :])


@njit(**JIT)
def _add_weighted(slope, weight, to):  # type: ignore[no-untyped-def]
    for x in range(len(to)):
        to[x] += weight * slope[x]
