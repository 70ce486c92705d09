# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.rows import fill_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["offset_differences", "offset_differences_gradient"]


def offset_differences(volume: torch.Tensor, places: Sequence[torch.Tensor]) -> torch.Tensor:
    """Twin of :py:func:`monai_reg_ext.networks.layers.offset_differences`.

    Places are a grid, so that four rows of the volume make one, between whose voxels a row of places then looks.
    """
    source, (pairs, *cells) = volume.contiguous().numpy(), (places[0].shape[1], *(place.shape[2] for place in places))
    axes = _neighbours_of_axes(places, volume.shape[2:])
    out = np.zeros((*source.shape[:2], pairs, *cells), np.float32)
    for item in range(len(out)):
        in_threads(lambda start, stop, item=item: _add_pairs(source[item], *axes, start, stop, out[item]), pairs)
    return torch.from_numpy(out).flatten(1, 2)


def offset_differences_gradient(
    volume: torch.Tensor, places: Sequence[torch.Tensor], gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients with respect to the volume and the places along each axis, from that with respect to the result."""
    source = volume.contiguous().numpy()
    of_result = gradient.contiguous().unflatten(1, (volume.shape[1], -1)).numpy()
    axes = _neighbours_of_axes(places, volume.shape[2:])
    of_volume = np.zeros_like(source)
    # a channel is one thread's, and so are its parts of the sums
    of_places = [np.zeros((volume.shape[1], *place.shape), np.float32) for place in places]
    for item in range(len(source)):

        def add(start: int, stop: int, item: int = item) -> None:
            _add_gradients(source[item], *axes, of_result[item], start, stop, of_volume[item], *of_places)

        in_threads(add, volume.shape[1])
    return torch.from_numpy(of_volume), *(torch.from_numpy(part.sum(0)) for part in of_places)


def _neighbours_of_axes(places: Sequence[torch.Tensor], size: Sequence[int]) -> list[np.ndarray]:
    """For each axis the two voxels beside a place, their weights, and those weights' slopes: 0 outside the volume."""
    axes = []
    for place, extent in zip(places, size, strict=True):
        position = place.detach().numpy()
        lower = np.floor(position)
        ends = [(lower, 1 - (position - lower), -1), (lower + 1, position - lower, 1)]
        voxels = np.stack([np.clip(voxel, 0, extent - 1) for voxel, _, _ in ends], -1).astype(np.int64)
        inside = [(voxel >= 0) & (voxel < extent) for voxel, _, _ in ends]
        weights = np.stack([weight * known for (_, weight, _), known in zip(ends, inside, strict=True)], -1)
        slopes = np.stack([slope * known for (_, _, slope), known in zip(ends, inside, strict=True)], -1)
        axes += [voxels, weights.astype(np.float32), slopes.astype(np.float32)]
    return axes


@njit(**JIT)
def _add_pairs(source, at_0, w_0, _0, at_1, w_1, _1, at_2, w_2, _2, start, stop, out):  # type: ignore[no-untyped-def]
    row = np.empty(source.shape[3], np.float32)
    for pair in range(start, stop):
        for side in range(2):
            sign = np.float32(1 - 2 * side)
            for c in range(len(source)):
                for i in range(out.shape[2]):
                    for j in range(out.shape[3]):
                        at = at_0[side, pair, i], at_1[side, pair, j]
                        _mix_rows(source[c], *at, w_0[side, pair, i], w_1[side, pair, j], row)
                        _look(row, at_2[side, pair], w_2[side, pair], sign, out[c, pair, i, j])


@njit(**JIT)
def _mix_rows(volume, at_0, at_1, w_0, w_1, row):  # type: ignore[no-untyped-def]
    """The row between four."""
    near, near_1 = volume[at_0[0], at_1[0]], volume[at_0[0], at_1[1]]
    near_0, far = volume[at_0[1], at_1[0]], volume[at_0[1], at_1[1]]
    w_near, w_near_1, w_near_0, w_far = w_0[0] * w_1[0], w_0[0] * w_1[1], w_0[1] * w_1[0], w_0[1] * w_1[1]
    for k in range(len(row)):
        row[k] = w_near * near[k] + w_near_1 * near_1[k] + w_near_0 * near_0[k] + w_far * far[k]


@njit(**JIT)
def _look(row, at, weight, sign, out):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] += sign * (weight[k, 0] * row[at[k, 0]] + weight[k, 1] * row[at[k, 1]])


@njit(**JIT)
def _add_gradients(  # type: ignore[no-untyped-def]
    source, at_0, w_0, s_0, at_1, w_1, s_1, at_2, w_2, s_2, of_result, start, stop, of_volume, of_0, of_1, of_2
):
    row, of_row = np.empty(source.shape[3], np.float32), np.empty(source.shape[3], np.float32)
    products = np.empty((2, 2), np.float32)
    for c in range(start, stop):
        for side in range(2):
            sign = np.float32(1 - 2 * side)
            for pair in range(of_result.shape[1]):
                k_at, k_weight, k_slope = at_2[side, pair], w_2[side, pair], s_2[side, pair]
                for i in range(of_result.shape[2]):
                    for j in range(of_result.shape[3]):
                        i_at, j_at = at_0[side, pair, i], at_1[side, pair, j]
                        i_weight, j_weight = w_0[side, pair, i], w_1[side, pair, j]
                        i_slope, j_slope = s_0[side, pair, i], s_1[side, pair, j]
                        _mix_rows(source[c], i_at, j_at, i_weight, j_weight, row)
                        gradient = of_result[c, pair, i, j]
                        _look_back(row, k_at, k_weight, k_slope, sign, gradient, of_row, of_2[c, side, pair])
                        for a in range(2):
                            for b in range(2):
                                weight = i_weight[a] * j_weight[b]
                                rows = source[c, i_at[a], j_at[b]], of_volume[c, i_at[a], j_at[b]]
                                products[a, b] = _add_row_gradient(*rows, of_row, weight)
                        for a in range(2):
                            for b in range(2):
                                of_0[c, side, pair, i] += i_slope[a] * j_weight[b] * products[a, b]
                                of_1[c, side, pair, j] += i_weight[a] * j_slope[b] * products[a, b]


@njit(**JIT)
def _look_back(row, at, weight, slope, sign, gradient, of_row, of_places):  # type: ignore[no-untyped-def]
    """The transpose of ``_look``."""
    fill_row(of_row, 0)
    for k in range(len(gradient)):
        value = sign * gradient[k]
        of_row[at[k, 0]] += weight[k, 0] * value
        of_row[at[k, 1]] += weight[k, 1] * value
        of_places[k] += value * (slope[k, 0] * row[at[k, 0]] + slope[k, 1] * row[at[k, 1]])


@njit(**JIT)
def _add_row_gradient(row, of_source, of_row, weight):  # type: ignore[no-untyped-def]
    product = np.float32(0)
    for k in range(len(row)):
        product += row[k] * of_row[k]
        of_source[k] += weight * of_row[k]
    return product
