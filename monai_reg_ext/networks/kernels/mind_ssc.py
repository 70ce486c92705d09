# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.rows import add_both, copy_row, fill_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["pooled_mind_ssc"]

_ROWS_IN_CACHE = 6


def pooled_mind_ssc(
    image: torch.Tensor,
    edges: Sequence[Sequence[Sequence[int]]],
    spacings: Sequence[Sequence[int]],
    cells: Sequence[Sequence[int]],
    radius: int,
    dilation: int,
    batch_mean: bool,
) -> list[torch.Tensor]:
    """MIND-SSC averaged over the cells of control grids; twin of the torch form in ``networks.blocks.mind_ssc``.

    Walks through the image in strips of a few rows that stay in the cache, once for the mean variance and once for the
    descriptors, which are summed at once; nothing of the image's size is kept.

    Args:
        image: ``(B, 1, I, J, K)`` float32, CPU.
        edges: the twelve pairs of neighbours.
        spacings: one or several grids, voxels per cell along each axis.
        cells: extent of each grid; leaves out a partial last cell, or not.
        radius: half-width of a patch.
        dilation: distance of the patch centres from the voxel.
        batch_mean: one mean variance for the whole batch.

    Returns:
        For every grid ``(B, 12, *cells)`` float32, channels last in memory.
    """
    size = image.shape[2:]
    padded = [np.pad(item[0].detach().numpy(), dilation, mode="edge") for item in image]
    steps = np.array([[min(step, extent) for step, extent in zip(spacing, size, strict=True)] for spacing in spacings])
    strip = math.lcm(*steps[:, 1].tolist())
    strip *= -(-_ROWS_IN_CACHE // strip)
    patches = dilation * np.array(edges), radius, dilation
    variance = np.array([_mean_variance(item, size, patches, strip) for item in padded])
    if batch_mean:
        variance[:] = variance.mean()
    pooled = [np.empty((len(padded), *extent, len(edges)), np.float32) for extent in cells]
    for item, mean in enumerate(variance):
        _pool(padded[item], size, patches, strip, mean, steps, tuple(grid[item] for grid in pooled))
    return [torch.from_numpy(grid).permute(0, 4, 1, 2, 3) for grid in pooled]


def _mean_variance(padded: np.ndarray, size: Sequence[int], patches: tuple, strip: int) -> float:
    sums = np.zeros(-(-size[1] // strip))
    in_threads(lambda start, stop: _sum_variance(padded, *patches, strip, start, stop, sums), size[1], strip)
    return sums.sum() / math.prod(size)


def _pool(
    padded: np.ndarray,
    size: Sequence[int],
    patches: tuple,
    strip: int,
    mean: float,
    steps: np.ndarray,
    grids: tuple[np.ndarray, ...],
) -> None:
    floor = np.float32(max(0.001 * mean, np.finfo(np.float32).tiny))
    ceiling = np.float32(1000 * mean) + floor
    in_threads(
        lambda start, stop: _pool_strips(padded, *patches, strip, start, stop, floor, ceiling, steps, grids),
        size[1],
        strip,
    )


@njit(**JIT)
def _sum_variance(padded, edges, radius, dilation, strip, start, stop, sums):  # type: ignore[no-untyped-def]
    size_i, size_j, size_k = _unpadded(padded, dilation)
    scratch = _scratch(len(edges), radius, strip, size_k)
    _, _, _, _, least, mean = scratch
    for first in range(start, stop, strip):
        rows = min(strip, size_j - first)
        total = 0.0
        for plane in range(-radius, size_i + radius):
            _add_plane(padded, edges, radius, dilation, plane, first, rows, scratch)
            for row in range(rows if plane >= radius else 0):
                _distances_of_row(radius, row, scratch)
                row_total = np.float32(0)
                for k in range(size_k):
                    row_total += mean[k] - least[k]
                total += row_total
        sums[first // strip] = total


@njit(**JIT)
def _pool_strips(  # type: ignore[no-untyped-def]
    padded, edges, radius, dilation, strip, start, stop, floor, ceiling, steps, grids
):
    size_i, size_j, size_k = _unpadded(padded, dilation)
    scratch = _scratch(len(edges), radius, strip, size_k)
    _, _, _, distances, least, mean = scratch
    sums = np.zeros((len(grids), strip, len(edges), size_k), np.float32)
    for first in range(start, stop, strip):
        rows = min(strip, size_j - first)
        for plane in range(-radius, size_i + radius):
            _add_plane(padded, edges, radius, dilation, plane, first, rows, scratch)
            if plane < radius:
                continue
            i = plane - radius
            for row in range(rows):
                _distances_of_row(radius, row, scratch)
                for k in range(size_k):
                    mean[k] = np.float32(1) / min(max(mean[k] - least[k], floor), ceiling)
                for c in range(len(edges)):
                    distance = distances[c]
                    for k in range(size_k):
                        distance[k] = _exp_of_negative((distance[k] - least[k]) * mean[k])
                    for level in range(len(grids)):
                        cell = sums[level, row // steps[level, 1], c]
                        for k in range(size_k):
                            cell[k] += distance[k]
            for level in range(len(grids)):
                if (i + 1) % steps[level, 0] == 0 or i + 1 == size_i:
                    _close_cells(sums[level], i, first, rows, (size_i, size_j, size_k), steps[level], grids[level])


@njit(**JIT)
def _unpadded(padded, dilation):  # type: ignore[no-untyped-def]
    return padded.shape[0] - 2 * dilation, padded.shape[1] - 2 * dilation, padded.shape[2] - 2 * dilation


@njit(**JIT)
def _scratch(channels, radius, strip, size_k):  # type: ignore[no-untyped-def]
    """Sums over the planes of a patch, its squares and rows; distances of a row, their least and their mean."""
    return (
        np.empty((2 * radius + 1, channels, strip, size_k), np.float32),
        np.empty(size_k + 2 * radius, np.float32),
        np.empty((strip + 2 * radius, size_k), np.float32),
        np.empty((channels, size_k), np.float32),
        np.empty(size_k, np.float32),
        np.empty(size_k, np.float32),
    )


@njit(**JIT)
def _add_plane(padded, edges, radius, dilation, plane, first, rows, scratch):  # type: ignore[no-untyped-def]
    """Squared differences of one plane, summed over the rows and columns of the patches."""
    size_i, size_j, size_k = _unpadded(padded, dilation)
    planes, squares, row_sums, _, _, _ = scratch
    i = min(max(plane, 0), size_i - 1) + dilation
    inner = squares[radius : radius + size_k]
    for c in range(len(edges)):
        (a_i, a_j, a_k), (b_i, b_j, b_k) = edges[c, 0], edges[c, 1]
        for row in range(rows + 2 * radius):
            j = min(max(first + row - radius, 0), size_j - 1) + dilation
            one = padded[i + a_i, j + a_j, dilation + a_k :]
            other = padded[i + b_i, j + b_j, dilation + b_k :]
            for k in range(size_k):
                difference = one[k] - other[k]
                inner[k] = difference * difference
            fill_row(squares[:radius], inner[0])
            fill_row(squares[radius + size_k :], inner[-1])
            copy_row(inner, row_sums[row])
            for shift in range(1, radius + 1):
                add_both(row_sums[row], squares[radius - shift :], squares[radius + shift :])
        plane_sums = planes[(plane + radius) % len(planes), c]
        for row in range(rows):
            copy_row(row_sums[row + radius], plane_sums[row])
            for shift in range(1, radius + 1):
                add_both(plane_sums[row], row_sums[row + radius - shift], row_sums[row + radius + shift])


@njit(**JIT)
def _distances_of_row(radius, row, scratch):  # type: ignore[no-untyped-def]
    planes, _, _, distances, least, mean = scratch
    share = np.float32(1 / len(distances))
    fill_row(least, np.inf)
    fill_row(mean, 0)
    for c in range(len(distances)):
        distance = distances[c]
        copy_row(planes[0, c, row], distance)
        for other in range(1, len(planes), 2):
            add_both(distance, planes[other, c, row], planes[other + 1, c, row])
        for k in range(len(least)):
            mean[k] += share * distance[k]
            least[k] = min(least[k], distance[k])


@njit(**JIT)
def _exp_of_negative(x):  # type: ignore[no-untyped-def]
    # a Taylor polynomial of exp(-x / 16), to the 16th: unlike a call of exp it is vectorised; exp(-30) is as good as 0
    y = min(x, np.float32(30)) * np.float32(-1 / 16)
    power = np.float32(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        power = power * y + np.float32(factor)
    power *= power
    power *= power
    power *= power
    return power * power


@njit(**JIT)
def _close_cells(sums, i, first, rows, size, steps, grid):  # type: ignore[no-untyped-def]
    """Write the means of finished cells and start anew."""
    cell_i = i // steps[0]
    extent_i = i + 1 - cell_i * steps[0]
    for row in range((rows + steps[1] - 1) // steps[1]):
        cell_j = first // steps[1] + row
        extent_j = min(steps[1], size[1] - cell_j * steps[1])
        if cell_i < grid.shape[0] and cell_j < grid.shape[1]:
            for cell_k in range(grid.shape[2]):
                begin, end = cell_k * steps[2], min((cell_k + 1) * steps[2], size[2])
                share = np.float32(1) / np.float32(extent_i * extent_j * (end - begin))
                for c in range(grid.shape[3]):
                    total = np.float32(0)
                    for k in range(begin, end):
                        total += sums[row, c, k]
                    grid[cell_i, cell_j, cell_k, c] = share * total
    fill_row(sums.reshape(-1), 0)
