# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["normal_product"]

# to wake another thread takes as long as this many cells
_CELLS_WORTH_A_THREAD = 4096


def normal_product(
    matrix: torch.Tensor, field: torch.Tensor, regularization: torch.Tensor | None, weights: Sequence[float]
) -> torch.Tensor:
    """Twin of :py:class:`monai_reg_ext.networks.layers.NormalOperator` in one pass over memory.

    Args:
        matrix: ``(B, 6, i, j, k)`` or ``(B, 3, i, j, k)`` float32, CPU.
        field: ``(B, 3, i, j, k)`` float32.
        regularization: ``(B,)``.
        weights: of the three axes.
    """
    result = torch.empty_like(field, memory_format=torch.contiguous_format)
    items = len(field)
    strength = np.zeros((items, 3), np.float32)
    if regularization is not None:
        strength[:] = np.outer(regularization.detach().numpy(), weights)
    planes = field.shape[2]
    blocks, vectors = (tensor.detach().contiguous().numpy() for tensor in (matrix, field))
    step = -(-_CELLS_WORTH_A_THREAD // max(1, field[0, 0, 0].numel()))
    in_threads(partial(_multiply_part, blocks, vectors, strength, result.numpy()), items * planes, step)
    return result


@njit(**JIT)
def _multiply_part(matrix, field, strength, result, start, stop):  # type: ignore[no-untyped-def]
    planes = field.shape[2]
    for number in range(start, stop):
        item, i = number // planes, number % planes
        _multiply_plane(matrix[item], field[item], strength[item], result[item], i)


@njit(**JIT)
def _multiply_plane(m, x, strength, y, i):  # type: ignore[no-untyped-def]
    planes, rows = x.shape[1:3]
    regularized = strength[0] > 0
    for j in range(rows):
        x0, x1, x2 = x[0, i, j], x[1, i, j], x[2, i, j]
        if len(m) == 6:
            _product_row(m[0, i, j], m[1, i, j], m[2, i, j], x0, x1, x2, y[0, i, j])
            _product_row(m[1, i, j], m[3, i, j], m[4, i, j], x0, x1, x2, y[1, i, j])
            _product_row(m[2, i, j], m[4, i, j], m[5, i, j], x0, x1, x2, y[2, i, j])
        else:
            for c in range(3):
                _scaled_row(m[c, i, j], x[c, i, j], y[c, i, j])
        if regularized:
            for c in range(3):
                # beyond a face lies the cell itself, from which it does not differ
                above, below = x[c, max(i - 1, 0), j], x[c, min(i + 1, planes - 1), j]
                before, behind = x[c, i, max(j - 1, 0)], x[c, i, min(j + 1, rows - 1)]
                _add_laplacian_row(x[c, i, j], above, below, before, behind, strength, y[c, i, j])


@njit(**JIT)
def _product_row(m0, m1, m2, x0, x1, x2, y):  # type: ignore[no-untyped-def]
    for k in range(len(y)):
        y[k] = m0[k] * x0[k] + m1[k] * x1[k] + m2[k] * x2[k]


@njit(**JIT)
def _scaled_row(m, x, y):  # type: ignore[no-untyped-def]
    for k in range(len(y)):
        y[k] = m[k] * x[k]


@njit(**JIT)
def _add_laplacian_row(x, above, below, before, behind, strength, y):  # type: ignore[no-untyped-def]
    two, last = np.float32(2), len(x) - 1
    s_i, s_j, s_k = strength[0], strength[1], strength[2]
    for k in range(len(x)):
        y[k] += s_i * (two * x[k] - above[k] - below[k]) + s_j * (two * x[k] - before[k] - behind[k])
    for k in range(1, last):
        y[k] += s_k * (two * x[k] - x[k - 1] - x[k + 1])
    if last > 0:
        y[0] += s_k * (x[0] - x[1])
        y[last] += s_k * (x[last] - x[last - 1])
