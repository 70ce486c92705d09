# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit

from monai_reg_ext.networks.kernels.rows import fill_row, scale_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["CompiledFeatureEnergy"]


class CompiledFeatureEnergy:
    """Twin of :py:class:`monai_reg_ext.networks.layers.FeatureEnergy` for the CPU.

    Sampling, difference, gradient and roughness in one pass over the features, which lie with the channels last, so
    that the eight neighbours of a point are eight runs of memory.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        regularization: float,
        data_weight: float,
        stretch: torch.Tensor | None,
        cell_weight: torch.Tensor | None = None,
    ) -> None:
        # the reference finds zeros outside: a frame of zeros makes sampling beside the grid the same as within it
        self.frame = int(stretch is not None)
        self.fixed = _channels_last(fixed)
        self.moving = _channels_last(F.pad(moving, [self.frame] * 6))
        # the length of a tuple is part of its type: the loop over the features is unrolled
        self.unrolled = (0,) * fixed.shape[1]
        size = np.array(fixed.shape[2:])
        cells = size.prod()
        self.stretch = np.ones(3, np.float32) if stretch is None else stretch.flatten().numpy()
        self.data_weight = np.float32(data_weight / cells)
        self.smoothness = (regularization / (3 * cells * (size - 1) / size)).astype(np.float32)
        # rows without factors stay as they are
        self.cell_weight = np.empty((*fixed.shape[:1], *size[:2], 0), np.float32)
        if cell_weight is not None:
            self.cell_weight = np.ascontiguousarray(cell_weight[:, 0].detach().numpy())
        self.result = np.empty((fixed.shape[0], 3, *size), np.float32)
        self.energies = np.empty((fixed.shape[0], size[0]))

    def gradient(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient and energy; the gradient's memory is used again by the next call."""
        fields = field.detach().contiguous().numpy()
        for item in range(len(fields)):
            in_threads(partial(self._differentiate, fields[item], item), fields.shape[2])
        return torch.from_numpy(self.result), torch.from_numpy(self.energies.sum(1).astype(np.float32))

    def _differentiate(self, field: np.ndarray, item: int, start: int, stop: int) -> None:
        moving = self.moving[item]
        strides = np.array(moving.strides[:3]) // moving.itemsize
        features = self.fixed[item], moving.reshape(-1), strides, self.unrolled, self.cell_weight[item]
        weights = self.stretch, self.data_weight, self.smoothness
        _gradient_of_planes(*features, field, self.frame, *weights, start, stop, self.result[item], self.energies[item])


def _channels_last(features: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(features.detach().numpy().transpose(0, 2, 3, 4, 1))


@njit(**JIT)
def _gradient_of_planes(  # type: ignore[no-untyped-def]
    fixed,
    moving,
    strides,
    unrolled,
    cell_weight,
    field,
    frame,
    stretch,
    data_weight,
    smoothness,
    start,
    stop,
    result,
    energies,
):
    size_i, size_j, size_k = field.shape[1:]
    offset = np.empty(size_k, np.int64)
    distance, slope = np.empty((3, size_k), np.float32), np.empty((3, size_k), np.float32)
    sums = np.empty((4, size_k), np.float32)
    for i in range(start, stop):
        energy = 0.0
        for j in range(size_j):
            energy += _roughness_of_row(field, i, j, smoothness, result)
            fill_row(offset, 0)
            for axis, size, first, step in ((0, size_i, i, 0), (1, size_j, j, 0), (2, size_k, 0, 1)):
                _locate_row(
                    field[axis, i, j], stretch[axis], frame, size, first, step,
                    strides[axis], offset, distance[axis], slope[axis],
                )  # fmt: skip
            _compare_row(fixed[i, j], moving, strides, unrolled, offset, distance, sums)
            for number in range(len(sums)):
                scale_row(sums[number], cell_weight[i, j])
            squares = np.float32(0)
            for k in range(size_k):
                squares += sums[3, k]
            energy += data_weight * squares
            for axis in range(3):
                gradient = result[axis, i, j]
                for k in range(size_k):
                    gradient[k] += np.float32(2) * data_weight * slope[axis, k] * sums[axis, k]
        energies[i] = energy


@njit(**JIT)
def _locate_row(  # type: ignore[no-untyped-def]
    displacement, stretch, frame, size, first, step, stride, offset, distance, slope
):
    """Lower neighbours of a row of sampling positions, distances from there, slopes (0 where clamped)."""
    last = size - 1 + 2 * frame
    for k in range(len(displacement)):
        position = np.float32(first + step * k + frame) + stretch * displacement[k]
        slope[k] = stretch if (position > np.float32(0)) and (position < np.float32(last)) else np.float32(0)
        position = min(max(position, np.float32(0)), np.float32(last))
        lower = min(np.int32(position), np.int32(last - 1))
        distance[k] = position - np.float32(lower)
        offset[k] += lower * stride


@njit(**JIT)
def _compare_row(fixed, moving, strides, unrolled, offset, distance, sums):  # type: ignore[no-untyped-def]
    """Sums over the features of difference times derivative along each axis, and of the squared difference."""
    channels = len(unrolled)
    stride_i, stride_j, stride_k = strides
    for k in range(len(offset)):
        at, (wi, wj, wk) = offset[k], distance[:, k]
        near, far = moving[at : at + channels], moving[at + stride_k : at + stride_k + channels]
        at += stride_j
        near_j, far_j = moving[at : at + channels], moving[at + stride_k : at + stride_k + channels]
        at += stride_i
        near_ij, far_ij = moving[at : at + channels], moving[at + stride_k : at + stride_k + channels]
        at -= stride_j
        near_i, far_i = moving[at : at + channels], moving[at + stride_k : at + stride_k + channels]
        along_i, along_j, along_k, squares = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for f in range(channels):
            # derivatives along k, and values where k is settled, then j, then i
            d00, d01 = far[f] - near[f], far_j[f] - near_j[f]
            d10, d11 = far_i[f] - near_i[f], far_ij[f] - near_ij[f]
            v00, v01 = near[f] + wk * d00, near_j[f] + wk * d01
            v10, v11 = near_i[f] + wk * d10, near_ij[f] + wk * d11
            v0, v1 = v00 + wj * (v01 - v00), v10 + wj * (v11 - v10)
            d0, d1 = d00 + wj * (d01 - d00), d10 + wj * (d11 - d10)
            difference = v0 + wi * (v1 - v0) - fixed[k, f]
            squares += difference * difference
            along_i += difference * (v1 - v0)
            along_j += difference * ((v01 - v00) + wi * ((v11 - v10) - (v01 - v00)))
            along_k += difference * (d0 + wi * (d1 - d0))
        sums[0, k], sums[1, k], sums[2, k], sums[3, k] = along_i, along_j, along_k, squares


@njit(**JIT)
def _roughness_of_row(field, i, j, smoothness, result):  # type: ignore[no-untyped-def]
    """Energy of the differences to the next cells; starts the row's gradient."""
    size_i, size_j, size_k = field.shape[1:]
    before_i, after_i, before_j, after_j = max(i - 1, 0), min(i + 1, size_i - 1), max(j - 1, 0), min(j + 1, size_j - 1)
    weight_i, weight_j, weight_k = smoothness
    two = np.float32(2)
    energy = np.float32(0)
    for axis in range(3):
        row, gradient = field[axis, i, j], result[axis, i, j]
        row_before_i, row_after_i = field[axis, before_i, j], field[axis, after_i, j]
        row_before_j, row_after_j = field[axis, i, before_j], field[axis, i, after_j]
        for k in range(size_k):
            next_i, next_j = row_after_i[k] - row[k], row_after_j[k] - row[k]
            energy += weight_i * next_i * next_i + weight_j * next_j * next_j
            gradient[k] = two * weight_i * (row[k] - row_before_i[k] - next_i)
            gradient[k] += two * weight_j * (row[k] - row_before_j[k] - next_j)
        for k in range(size_k - 1):
            next_k = row[k + 1] - row[k]
            energy += weight_k * next_k * next_k
            gradient[k] -= two * weight_k * next_k
        for k in range(1, size_k):
            gradient[k] += two * weight_k * (row[k] - row[k - 1])
    return energy
