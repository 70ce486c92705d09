# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["Band", "band", "banded_filter", "filter_planes", "overwrite_by_filtered"]

Band = tuple[np.ndarray, tuple[int, ...]]


def banded_filter(volume: torch.Tensor, bands: Sequence[Band]) -> torch.Tensor:
    """Multiply every spatial axis of a volume by a banded matrix, in one pass over memory.

    Args:
        volume: ``(B, C, i, j, k)`` float32, CPU.
        bands: for each spatial axis its matrix, see :py:func:`band`.

    Returns:
        Tensor of the same shape.
    """
    source = volume.detach().contiguous().flatten(0, 1).numpy()
    result = np.empty_like(source)
    planes = source.shape[1]

    def filter_part(start: int, stop: int) -> None:
        for index in range(start // planes, -(-stop // planes)):
            first, last = max(0, start - index * planes), min(planes, stop - index * planes)
            filter_planes(source[index], *bands, first, last, result[index])

    in_threads(filter_part, len(source) * planes)
    return torch.from_numpy(result).view(volume.shape)


def overwrite_by_filtered(volume: torch.Tensor, bands: Sequence[Band]) -> None:
    """:py:func:`banded_filter` in place, one ``(i, j, k)`` after the other.

    Args:
        volume: ``(B, C, i, j, k)`` float32, CPU, contiguous.
        bands: see :py:func:`banded_filter`.
    """
    source = volume.flatten(0, 1).numpy()
    planes = source.shape[1]

    def filter_part(start: int, stop: int) -> None:
        for index in range(start, stop):
            filtered = np.empty_like(source[index])
            filter_planes(source[index], *bands, 0, planes, filtered)
            source[index] = filtered

    in_threads(filter_part, len(source))


def band(matrix: torch.Tensor) -> Band:
    """Diagonals of a banded matrix.

    Args:
        matrix: ``(n, n)``.

    Returns:
        ``(taps, n)`` weights of the neighbours of each cell, and a tuple of ``taps`` zeros: its length is part of its
        type, so that loops over neighbours are unrolled.
    """
    rows, columns = matrix.nonzero(as_tuple=True)
    reach = int((rows - columns).abs().max())
    size = len(matrix)
    weights = np.zeros((2 * reach + 1, size), np.float32)
    for tap in range(-min(reach, size - 1), min(reach, size - 1) + 1):
        weights[tap + reach, max(0, -tap) : size - max(0, tap)] = matrix.diagonal(tap).numpy()
    return weights, (0,) * (2 * reach + 1)


@njit(**JIT)
def filter_planes(volume, band_i, band_j, band_k, start, stop, result):  # type: ignore[no-untyped-def]
    """Filtered planes ``start`` to ``stop`` of a volume; cells beyond a face have weight 0."""
    (weights_i, taps_i), (weights_j, taps_j), (weights_k, taps_k) = band_i, band_j, band_k
    reach_i, reach_j, reach_k = len(taps_i) // 2, len(taps_j) // 2, len(taps_k) // 2
    size_i, size_j, size_k = volume.shape
    plane = np.empty((size_j, size_k), np.float32)
    flat_volume, flat_plane = volume.reshape(size_i, size_j * size_k), plane.reshape(-1)
    row = np.zeros(size_k + 2 * reach_k, np.float32)
    for i in range(start, stop):
        for x in range(size_j * size_k):
            total = np.float32(0)
            for tap in range(len(taps_i)):
                total += weights_i[tap, i] * flat_volume[min(max(i + tap - reach_i, 0), size_i - 1), x]
            flat_plane[x] = total
        for j in range(size_j):
            for k in range(size_k):
                total = np.float32(0)
                for tap in range(len(taps_j)):
                    total += weights_j[tap, j] * plane[min(max(j + tap - reach_j, 0), size_j - 1), k]
                row[reach_k + k] = total
            for k in range(size_k):
                total = np.float32(0)
                for tap in range(len(taps_k)):
                    total += weights_k[tap, k] * row[k + tap]
                result[i, j, k] = total
