# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["cost"]


def cost(fixed: torch.Tensor, moving: torch.Tensor, places: torch.Tensor, displacements: torch.Tensor) -> torch.Tensor:
    """Twin of :py:func:`monai_reg_ext.networks.layers.sampled_cost`.

    Features lie with the channels last, so that the eight neighbours of a sample are eight runs of memory.
    """
    fixed_last, moving_last = _channels_last(fixed), _channels_last(moving)
    where, offsets = places.detach().contiguous().numpy(), displacements.detach().float().numpy()
    out = np.empty((len(fixed), len(offsets), *fixed.shape[2:]), np.float32)
    # the length of a tuple is part of its type: the loop over the features is unrolled
    unrolled = (0,) * fixed.shape[1]
    for item in range(len(out)):
        arrays = fixed_last[item], moving_last[item].reshape(-1), np.array(moving.shape[2:]), unrolled
        of_item = where[item], offsets, out[item]
        in_threads(lambda start, stop, a=(*arrays, *of_item): _cost_of_planes(*a, start, stop), out.shape[2])
    return torch.from_numpy(out)


def _channels_last(features: torch.Tensor) -> np.ndarray:
    return features.detach().permute(0, 2, 3, 4, 1).contiguous().numpy()


@njit(**JIT)
def _cost_of_planes(fixed, moving, size, unrolled, places, offsets, out, start, stop):  # type: ignore[no-untyped-def]
    step = np.array([size[1] * size[2], size[2], 1]) * len(unrolled)
    # along an axis of one cell the next one is the same
    following = np.where(size > 1, step, 0)
    last = (size - 1).astype(np.float32)
    distance = np.empty(3, np.float32)
    for i in range(start, stop):
        for j in range(places.shape[2]):
            for k in range(places.shape[3]):
                for label in range(len(offsets)):
                    at = 0
                    for axis in range(3):
                        position = min(max(places[axis, i, j, k] + offsets[label, axis], np.float32(0)), last[axis])
                        lower = max(min(np.int32(position), np.int32(size[axis] - 2)), np.int32(0))
                        distance[axis] = position - np.float32(lower)
                        at += lower * step[axis]
                    out[label, i, j, k] = _squares(fixed[i, j, k], moving, at, following, distance, unrolled)


@njit(**JIT)
def _squares(fixed, moving, at, following, distance, unrolled):  # type: ignore[no-untyped-def]
    channels = len(unrolled)
    (to_i, to_j, to_k), (w_i, w_j, w_k) = following, distance
    near, far = moving[at : at + channels], moving[at + to_k : at + to_k + channels]
    at += to_j
    near_j, far_j = moving[at : at + channels], moving[at + to_k : at + to_k + channels]
    at += to_i
    near_ij, far_ij = moving[at : at + channels], moving[at + to_k : at + to_k + channels]
    at -= to_j
    near_i, far_i = moving[at : at + channels], moving[at + to_k : at + to_k + channels]
    squares = np.float32(0)
    for f in range(channels):
        # k is settled, then j, then i
        v_00, v_01 = near[f] + w_k * (far[f] - near[f]), near_j[f] + w_k * (far_j[f] - near_j[f])
        v_10, v_11 = near_i[f] + w_k * (far_i[f] - near_i[f]), near_ij[f] + w_k * (far_ij[f] - near_ij[f])
        v_0, v_1 = v_00 + w_j * (v_01 - v_00), v_10 + w_j * (v_11 - v_10)
        difference = v_0 + w_i * (v_1 - v_0) - fixed[f]
        squares += difference * difference
    return squares
