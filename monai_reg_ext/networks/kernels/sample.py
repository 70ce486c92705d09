# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["sample"]


def sample(image: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Twin of linear :py:func:`monai_reg_ext.networks.layers.sample` with the border repeated, three axes.

    The neighbours of a row of samples are found once for all channels.
    """
    values, places = image.detach().contiguous().numpy(), coordinates.detach().contiguous().numpy()
    out = np.empty((*values.shape[:2], *places.shape[2:]), np.float32)
    for item in range(len(out)):
        of_item = values[item].reshape(values.shape[1], -1), np.array(values.shape[2:]), places[item], out[item]
        in_threads(lambda start, stop, a=of_item: _sample_planes(*a, start, stop), out.shape[2])
    return torch.from_numpy(out)


@njit(**JIT)
def _sample_planes(image, size, places, out, start, stop):  # type: ignore[no-untyped-def]
    step = np.array([size[1] * size[2], size[2], 1])
    # along an axis of one voxel the next one is the same
    to_i, to_j, to_k = np.where(size > 1, step, 0)
    last = (size - 1).astype(np.float32)
    length = places.shape[3]
    lower = np.empty(length, np.int64)
    weight = np.empty((3, length), np.float32)
    for i in range(start, stop):
        for j in range(places.shape[2]):
            lower[:] = 0
            for axis in range(3):
                row = places[axis, i, j]
                for k in range(length):
                    position = min(max(row[k], np.float32(0)), last[axis])
                    # what is not a number stays within the image
                    voxel = max(min(np.int32(position), np.int32(size[axis] - 2)), np.int32(0))
                    weight[axis, k] = position - np.float32(voxel)
                    lower[k] += voxel * step[axis]
            for channel in range(len(image)):
                values, result = image[channel], out[channel, i, j]
                for k in range(length):
                    at, w_i, w_j, w_k = lower[k], weight[0, k], weight[1, k], weight[2, k]
                    v_00 = values[at] + w_k * (values[at + to_k] - values[at])
                    at += to_j
                    v_01 = values[at] + w_k * (values[at + to_k] - values[at])
                    at += to_i
                    v_11 = values[at] + w_k * (values[at + to_k] - values[at])
                    at -= to_j
                    v_10 = values[at] + w_k * (values[at + to_k] - values[at])
                    v_0, v_1 = v_00 + w_j * (v_01 - v_00), v_10 + w_j * (v_11 - v_10)
                    result[k] = v_0 + w_i * (v_1 - v_0)
