# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.rows import add_row, copy_row, fill_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["AxisWeights", "add_mean", "cost", "cost_gradient", "products"]

# Samples along axis 2 that are worked on together, and bytes of samples along axis 2 of all channels at once.
_SAMPLES_IN_CACHE = 128
_LINE_BYTES = 256 << 20

# For each axis the lower one of the two voxels that a displacement leads to from a point, and how far beyond, (l, n).
AxisWeights = Sequence[tuple[torch.Tensor, torch.Tensor]]


def cost(fixed: torch.Tensor, moving: torch.Tensor, weights: AxisWeights) -> torch.Tensor:
    """Twin of :py:func:`monai_reg_ext.networks.layers.window_cost`."""
    return _sum_of_terms(fixed, moving, weights, True)


def products(one: torch.Tensor, moving: torch.Tensor, weights: AxisWeights) -> torch.Tensor:
    """Products instead of squared differences, ``sum_c one_c(k) moving_c(k + d)``."""
    return _sum_of_terms(one, moving, weights, False)


def add_mean(probabilities: torch.Tensor, values: torch.Tensor, weights: AxisWeights, out: torch.Tensor) -> None:
    """Twin of :py:func:`monai_reg_ext.networks.layers.window_mean`, added to ``out``."""
    probabilities = probabilities.contiguous()
    for part in _parts(values, weights):
        of_item, lines, axes = probabilities[part.item].numpy(), part.lines(values), part.axes
        mean = out[part.item, part.channels].numpy()

        def add(start: int, stop: int, arrays=(of_item, lines, *axes, mean)) -> None:  # type: ignore[no-untyped-def]
            _add_mean(*arrays[:-1], start, stop, arrays[-1])

        in_threads(add, out.shape[2])


def cost_gradient(
    fixed: torch.Tensor, moving: torch.Tensor, weights: AxisWeights, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients with respect to the features of both sides, from that with respect to the costs."""
    totals = torch.zeros_like(fixed), torch.zeros_like(moving)
    fixed, gradient = fixed.contiguous(), gradient.contiguous()
    for part in _parts(moving, weights):
        chosen = part.item, part.channels
        lines = part.lines(moving)
        of_lines = np.zeros_like(lines)
        arrays = fixed[chosen].numpy(), lines, *part.axes, gradient[part.item].numpy()
        of_sides = totals[0][chosen].numpy(), of_lines, totals[1][chosen].numpy()

        def add(start: int, stop: int, arrays=arrays, last=part.last, out=of_sides) -> None:  # type: ignore[no-untyped-def]
            _add_cost_gradient(*arrays, start, stop, *out[:2])
            _add_to_lines(out[1], *last, start, stop, out[2])

        in_threads(add, len(lines))
    return totals


def _sum_of_terms(one: torch.Tensor, moving: torch.Tensor, weights: AxisWeights, squares: bool) -> torch.Tensor:
    one = one.contiguous()
    # empty memory of numpy's comes in huge pages, where the system has them, zeros do not
    out = np.empty((len(one), *(len(lower) for lower, _ in weights), *one.shape[2:]), np.float32)
    out.fill(0)
    for part in _parts(moving, weights):
        arrays = one[part.item, part.channels].numpy(), part.lines(moving), *part.axes

        def add(start: int, stop: int, arrays=arrays, of_item=out[part.item]) -> None:  # type: ignore[no-untyped-def]
            _add_rows(*arrays, squares, start, stop, of_item)

        in_threads(add, one.shape[2])
    return torch.from_numpy(out)


class _Part(NamedTuple):
    """Channels of an item, and the weights of the axes as arrays."""

    item: int
    channels: slice
    axes: tuple[np.ndarray, ...]
    last: tuple[np.ndarray, ...]

    def lines(self, volume: torch.Tensor) -> np.ndarray:
        """``(C, I, J, l_2 n_2)`` samples along axis 2."""
        source = volume[self.item, self.channels].contiguous().numpy()
        lines = np.empty((*source.shape[:3], len(self.last[0])), np.float32)
        in_threads(lambda start, stop: _write_lines(source, *self.last, start, stop, lines), len(source))
        return lines


def _parts(volume: torch.Tensor, weights: AxisWeights) -> Iterator[_Part]:
    arrays = [array.numpy() for pair in weights for array in pair]
    last = tuple(array.reshape(-1) for array in arrays[4:])
    bytes_per_channel = 4 * volume.shape[2] * volume.shape[3] * len(last[0])
    step = max(1, _LINE_BYTES // max(1, bytes_per_channel))
    for item in range(len(volume)):
        for start in range(0, volume.shape[1], step):
            yield _Part(item, slice(start, min(start + step, volume.shape[1])), tuple(arrays[:4]), last)


@njit(**JIT)
def _write_lines(source, lower, weight, start, stop, lines):  # type: ignore[no-untyped-def]
    last = source.shape[3] - 1
    for c in range(start, stop):
        for i in range(source.shape[1]):
            for j in range(source.shape[2]):
                line, out = source[c, i, j], lines[c, i, j]
                for x in range(len(out)):
                    below = line[lower[x]]
                    out[x] = below + weight[x] * (line[min(lower[x] + 1, last)] - below)


@njit(**JIT)
def _add_to_lines(of_lines, lower, weight, start, stop, out):  # type: ignore[no-untyped-def]
    """The transpose of ``_write_lines``."""
    last = out.shape[3] - 1
    for c in range(start, stop):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                line, gradient = out[c, i, j], of_lines[c, i, j]
                for x in range(len(gradient)):
                    line[lower[x]] += (1 - weight[x]) * gradient[x]
                    line[min(lower[x] + 1, last)] += weight[x] * gradient[x]


@njit(**JIT)
def _add_rows(one, lines, lower_0, weight_0, lower_1, weight_1, squares, start, stop, out):  # type: ignore[no-untyped-def]
    """Rows ``start`` to ``stop`` of points: a block of displacements along axis 2 after the other."""
    channels, n_2 = len(one), out.shape[5]
    step = max(1, _SAMPLES_IN_CACHE // n_2)
    plane = np.empty((channels, lines.shape[2], step * n_2), np.float32)
    tile = np.empty((channels, step * n_2), np.float32)
    total = np.empty(step * n_2, np.float32)
    for i in range(start, stop):
        for first in range(0, out.shape[2], step):
            count = min(step, out.shape[2] - first)
            for d_0 in range(out.shape[0]):
                _write_plane(lines, lower_0[d_0, i], weight_0[d_0, i], first * n_2, count * n_2, plane)
                for j in range(out.shape[4]):
                    _write_tile(one[:, i, j], count, tile)
                    for d_1 in range(out.shape[1]):
                        fill_row(total, 0)
                        low, up = lower_1[d_1, j], min(lower_1[d_1, j] + 1, lines.shape[2] - 1)
                        for c in range(channels):
                            rows = tile[c], plane[c, low], plane[c, up]
                            if squares:
                                _add_squared_difference(*rows, weight_1[d_1, j], total)
                            else:
                                _add_product(*rows, weight_1[d_1, j], total)
                        for label in range(count):
                            add_row(out[d_0, d_1, first + label, i, j], total[label * n_2 : (label + 1) * n_2])


@njit(**JIT)
def _write_plane(lines, low, weight, begin, length, plane):  # type: ignore[no-untyped-def]
    """Samples between two planes of lines."""
    up = min(low + 1, lines.shape[1] - 1)
    for c in range(len(lines)):
        for j in range(lines.shape[2]):
            below, above = lines[c, low, j, begin : begin + length], lines[c, up, j, begin : begin + length]
            out = plane[c, j]
            for x in range(length):
                out[x] = below[x] + weight * (above[x] - below[x])


@njit(**JIT)
def _write_tile(rows, count, tile):  # type: ignore[no-untyped-def]
    """The same row of points for each of some displacements."""
    n_2 = rows.shape[1]
    for c in range(len(rows)):
        for label in range(count):
            copy_row(rows[c], tile[c, label * n_2 : (label + 1) * n_2])


@njit(**JIT)
def _add_squared_difference(one, below, above, weight, total):  # type: ignore[no-untyped-def]
    for x in range(len(total)):
        difference = one[x] - (below[x] + weight * (above[x] - below[x]))
        total[x] += difference * difference


@njit(**JIT)
def _add_product(one, below, above, weight, total):  # type: ignore[no-untyped-def]
    for x in range(len(total)):
        total[x] += one[x] * (below[x] + weight * (above[x] - below[x]))


@njit(**JIT)
def _gather_row(source, first, count, i, j, out):  # type: ignore[no-untyped-def]
    """A row of points of some displacements, one displacement after the other; what is behind the last is not used."""
    n_2 = source.shape[3]
    for label in range(count):
        copy_row(source[first + label, i, j], out[label * n_2 : (label + 1) * n_2])


@njit(**JIT)
def _add_mean(probabilities, lines, lower_0, weight_0, lower_1, weight_1, start, stop, mean):  # type: ignore[no-untyped-def]
    l_0, l_1, l_2, _, n_1, n_2 = probabilities.shape
    step = max(1, _SAMPLES_IN_CACHE // n_2)
    plane = np.zeros((len(mean), lines.shape[2], step * n_2), np.float32)
    total = np.empty((len(mean), n_1, step * n_2), np.float32)
    row = np.empty(step * n_2, np.float32)
    for i in range(start, stop):
        for first in range(0, l_2, step):
            count = min(step, l_2 - first)
            total[:] = 0
            for d_0 in range(l_0):
                _write_plane(lines, lower_0[d_0, i], weight_0[d_0, i], first * n_2, count * n_2, plane)
                for j in range(n_1):
                    for d_1 in range(l_1):
                        _gather_row(probabilities[d_0, d_1], first, count, i, j, row)
                        low, up = lower_1[d_1, j], min(lower_1[d_1, j] + 1, lines.shape[2] - 1)
                        for c in range(len(mean)):
                            _add_product(row, plane[c, low], plane[c, up], weight_1[d_1, j], total[c, j])
            for c in range(len(mean)):
                for j in range(n_1):
                    for label in range(count):
                        add_row(mean[c, i, j], total[c, j, label * n_2 : (label + 1) * n_2])


@njit(**JIT)
def _add_cost_gradient(  # type: ignore[no-untyped-def]
    fixed, lines, lower_0, weight_0, lower_1, weight_1, gradient, start, stop, of_fixed, of_lines
):
    """Of channels ``start`` to ``stop``, to the fixed features and to the lines of the moving ones."""
    l_0, l_1, l_2, n_0, n_1, n_2 = gradient.shape
    step, channels, height = max(1, _SAMPLES_IN_CACHE // n_2), stop - start, lines.shape[2]
    plane = np.zeros((channels, height, step * n_2), np.float32)
    of_plane = np.empty_like(plane)
    tile = np.zeros((channels, step * n_2), np.float32)
    of_tile = np.empty_like(tile)
    row = np.empty(step * n_2, np.float32)
    for first in range(0, l_2, step):
        count = min(step, l_2 - first)
        for i in range(n_0):
            for d_0 in range(l_0):
                low_0, up_0 = lower_0[d_0, i], min(lower_0[d_0, i] + 1, lines.shape[1] - 1)
                _write_plane(lines[start:stop], low_0, weight_0[d_0, i], first * n_2, count * n_2, plane)
                of_plane[:] = 0
                for j in range(n_1):
                    _write_tile(fixed[start:stop, i, j], count, tile)
                    of_tile[:] = 0
                    for d_1 in range(l_1):
                        _gather_row(gradient[d_0, d_1], first, count, i, j, row)
                        low, up = lower_1[d_1, j], min(lower_1[d_1, j] + 1, height - 1)
                        for c in range(channels):
                            rows = row, tile[c], plane[c, low], plane[c, up]
                            _add_slopes(*rows, weight_1[d_1, j], of_tile[c], of_plane[c, low], of_plane[c, up])
                    for c in range(channels):
                        for label in range(count):
                            add_row(of_fixed[start + c, i, j], of_tile[c, label * n_2 : (label + 1) * n_2])
                _add_plane(of_plane, low_0, up_0, weight_0[d_0, i], first * n_2, count * n_2, of_lines[start:stop])


@njit(**JIT)
def _add_slopes(gradient, fixed, below, above, weight, of_fixed, of_below, of_above):  # type: ignore[no-untyped-def]
    for x in range(len(gradient)):
        slope = 2 * gradient[x] * (fixed[x] - (below[x] + weight * (above[x] - below[x])))
        of_fixed[x] += slope
        of_below[x] -= (1 - weight) * slope
        of_above[x] -= weight * slope


@njit(**JIT)
def _add_plane(plane, low, up, weight, begin, length, lines):  # type: ignore[no-untyped-def]
    """The transpose of ``_write_plane``."""
    for c in range(len(lines)):
        for j in range(lines.shape[2]):
            below, above = lines[c, low, j, begin : begin + length], lines[c, up, j, begin : begin + length]
            for x in range(length):
                below[x] += (1 - weight) * plane[c, j, x]
                above[x] += weight * plane[c, j, x]
