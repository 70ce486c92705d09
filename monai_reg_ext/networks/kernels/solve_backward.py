# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.rows import copy_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["solve_points"]

LEAST_DETERMINANT = np.float32(0.05)
NEIGHBOUR = np.float32(2)  # voxels: a target so near starts where the one before it ended
BLOCK = 4096  # targets; each block starts anew, so that the result does not depend on the number of threads


def solve_points(
    ddf: torch.Tensor, targets: torch.Tensor, start: torch.Tensor, iterations: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points ``(N, 3)`` that the field ``(3, I, J, K)`` moves to targets ``(N, 3)``, and the distances left ``(N,)``.

    Newton's method with the exact derivative of the linear interpolation. ``start`` is the ``(4, 4)`` matrix from a
    target to where the search begins if there is no neighbour to begin with.
    """
    field = np.ascontiguousarray(ddf.detach().numpy().transpose(1, 2, 3, 0))
    wanted = np.ascontiguousarray(targets.detach().numpy().T)
    points, distances = np.empty_like(wanted), np.empty(len(targets), np.float32)
    strides = np.array(field.strides[:3]) // field.itemsize
    flat, matrix = field.reshape(-1), np.ascontiguousarray(start[:3].numpy(), np.float32)
    limits = iterations, np.float32(tolerance)
    task = partial(_solve_range, flat, np.array(field.shape[:3]), strides, wanted, matrix, *limits, points, distances)
    in_threads(task, len(targets), BLOCK)
    return torch.from_numpy(points).T, torch.from_numpy(distances)


@njit(**JIT)
def _solve_range(  # type: ignore[no-untyped-def]
    flat, size, strides, targets, matrix, iterations, tolerance, points, distances, start, stop
):
    field = flat, size, strides
    # value and slopes of the field's three components; scratch
    cell, vectors = np.empty((3, 4), np.float32), np.zeros((7, 3), np.float32)
    target, here, best, shift = vectors[0], vectors[1], vectors[2], vectors[3]
    for n in range(start, stop):
        is_neighbour = n % BLOCK > 0
        for axis in range(3):
            is_neighbour = is_neighbour and abs(targets[axis, n] - target[axis]) <= NEIGHBOUR
            shift[axis] = best[axis] - target[axis]
        for axis in range(3):
            target[axis] = targets[axis, n]
            best[axis] = target[axis] + shift[axis]
        left = np.float32(np.inf)
        if is_neighbour:
            left = _arrive(field, target, best, iterations, tolerance, cell, vectors[4:])
        if not left <= tolerance:
            for axis in range(3):
                row = matrix[axis]
                here[axis] = row[0] * target[0] + row[1] * target[1] + row[2] * target[2] + row[3]
            again = _arrive(field, target, here, iterations, tolerance, cell, vectors[4:])
            if not left <= again:
                left = again
                copy_row(here, best)
        distances[n] = left
        for axis in range(3):
            points[axis, n] = best[axis]


@njit(**JIT)
def _arrive(field, target, here, iterations, tolerance, cell, vectors):  # type: ignore[no-untyped-def]
    """Move a point until the field takes it to its target; the distance that is left."""
    missing, step, there = vectors[0], vectors[1], vectors[2]
    distance = _look(field, target, here, cell, missing)
    length, moved = np.float32(1), True
    for _ in range(iterations):
        if distance <= tolerance:
            break
        if moved:
            _newton_step(cell, missing, step)
        for axis in range(3):
            there[axis] = here[axis] + length * step[axis]
        left = _look(field, target, there, cell, missing)
        moved = left < distance
        if moved:
            distance = left
            length = min(np.float32(2) * length, np.float32(1))
            copy_row(there, here)
        else:
            length *= np.float32(0.5)
    return distance


@njit(**JIT)
def _newton_step(cell, missing, step):  # type: ignore[no-untyped-def]
    """``J^-1 missing`` by Cramer's rule; ``missing`` itself where the field all but folds."""
    one = np.float32(1)
    a0, b0, c0 = one + cell[0, 1], cell[0, 2], cell[0, 3]
    a1, b1, c1 = cell[1, 1], one + cell[1, 2], cell[1, 3]
    a2, b2, c2 = cell[2, 1], cell[2, 2], one + cell[2, 3]
    m0, m1, m2 = missing[0], missing[1], missing[2]
    n0, n1, n2 = b1 * c2 - b2 * c1, b2 * c0 - b0 * c2, b0 * c1 - b1 * c0
    determinant = a0 * n0 + a1 * n1 + a2 * n2
    if determinant > LEAST_DETERMINANT:
        scale = one / determinant
        step[0] = scale * (m0 * n0 + m1 * n1 + m2 * n2)
        step[1] = scale * (m0 * (c1 * a2 - c2 * a1) + m1 * (c2 * a0 - c0 * a2) + m2 * (c0 * a1 - c1 * a0))
        step[2] = scale * (m0 * (a1 * b2 - a2 * b1) + m1 * (a2 * b0 - a0 * b2) + m2 * (a0 * b1 - a1 * b0))
    else:
        copy_row(missing, step)


@njit(**JIT)
def _look(field, target, here, cell, missing):  # type: ignore[no-untyped-def]
    """What a point is short of its target, and how far that is; fills the cell with the field there."""
    _interpolate(field, here, cell)
    squares = np.float32(0)
    for axis in range(3):
        missing[axis] = target[axis] - here[axis] - cell[axis, 0]
        squares += missing[axis] * missing[axis]
    return np.sqrt(squares)


@njit(**JIT)
def _interpolate(field, position, cell):  # type: ignore[no-untyped-def]
    """Components of the field, and their derivatives along the three axes, 0 beyond the border."""
    flat, size, strides = field
    at_i, step_i, wi, inside_i = _locate(position[0], size[0], strides[0])
    at_j, step_j, wj, inside_j = _locate(position[1], size[1], strides[1])
    at_k, step_k, wk, inside_k = _locate(position[2], size[2], strides[2])
    at = at_i + at_j + at_k
    for axis in range(3):
        v000, v001 = flat[at + axis], flat[at + step_k + axis]
        v010, v011 = flat[at + step_j + axis], flat[at + step_j + step_k + axis]
        v100, v101 = flat[at + step_i + axis], flat[at + step_i + step_k + axis]
        v110, v111 = flat[at + step_i + step_j + axis], flat[at + step_i + step_j + step_k + axis]
        d00, d01, d10, d11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
        v00, v01, v10, v11 = v000 + wk * d00, v010 + wk * d01, v100 + wk * d10, v110 + wk * d11
        v0, v1 = v00 + wj * (v01 - v00), v10 + wj * (v11 - v10)
        d0, d1 = d00 + wj * (d01 - d00), d10 + wj * (d11 - d10)
        cell[axis, 0] = v0 + wi * (v1 - v0)
        cell[axis, 1] = inside_i * (v1 - v0)
        cell[axis, 2] = inside_j * ((v01 - v00) + wi * ((v11 - v10) - (v01 - v00)))
        cell[axis, 3] = inside_k * (d0 + wi * (d1 - d0))


@njit(**JIT)
def _locate(position, size, stride):  # type: ignore[no-untyped-def]
    """Offset of the lower neighbour, that of the upper one from it, distance from the lower, 1 unless clamped."""
    last = np.float32(size - 1)
    inside = np.float32(1) if (position > np.float32(0)) and (position < last) else np.float32(0)
    # written so that what is not a number lies at the border too
    clamped = position if position > np.float32(0) else np.float32(0)
    clamped = clamped if clamped < last else last
    lower = min(np.int64(clamped), max(size - 2, 0))
    return lower * stride, stride if size > 1 else 0, clamped - np.float32(lower), inside
