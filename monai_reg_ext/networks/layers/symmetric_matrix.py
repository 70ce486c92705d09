# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["COLUMNS", "ROWS", "entries_of", "matrices_of", "symmetric_inverse", "symmetric_product", "symmetric_shape"]

# row and column of the six entries of a symmetric 3 x 3 matrix, in the order in which they stand as channels
ROWS, COLUMNS = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)


def matrices_of(entries: torch.Tensor) -> torch.Tensor:
    """Symmetric matrices ``(B, n, n, ...)`` from their entries, row by row of the upper triangle ``(B, E, ...)``.

    Six entries 00, 01, 02, 11, 12, 22 are those of a 3 x 3 matrix, three those of a 2 x 2 matrix.
    """
    return entries[:, _numbers(entries.shape[1])]


def entries_of(matrices: torch.Tensor) -> torch.Tensor:
    """The entries ``(B, E, ...)`` of symmetric matrices ``(B, n, n, ...)``; the lower triangle is not looked at."""
    size = matrices.shape[1]
    rows, columns = symmetric_shape(size * (size + 1) // 2)
    return matrices[:, rows, columns]


def symmetric_product(entries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Products of symmetric matrices, entries ``(B, E, ...)``, with vectors ``(B, n, ...)``."""
    return torch.stack([(entries[:, row] * vectors).sum(1) for row in _numbers(entries.shape[1])], 1)


def symmetric_inverse(entries: torch.Tensor) -> torch.Tensor:
    """Entries ``(B, E, ...)`` of the inverse of symmetric 1 x 1, 2 x 2 or 3 x 3 matrices; their adjugate in float64.

    Raises:
        ValueError: for larger matrices.
    """
    exact = entries.double()
    if entries.shape[1] == 1:
        return entries.reciprocal()
    if entries.shape[1] == 3:
        a, b, d = exact.unbind(1)
        adjugate, determinant = [d, -b, a], a * d - b * b
    elif entries.shape[1] == 6:
        a, b, c, d, e, f = exact.unbind(1)
        adjugate = [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b]
        determinant = a * adjugate[0] + b * adjugate[1] + c * adjugate[2]
    else:
        raise ValueError(f"only symmetric matrices of up to 6 entries, 3 x 3, are inverted, got {entries.shape[1]}.")
    return torch.stack(adjugate, 1).div_(determinant.unsqueeze(1)).to(entries.dtype)


def symmetric_shape(entries: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row and column of each of so many entries.

    Raises:
        ValueError: when no symmetric matrix has that many.
    """
    size = int(((8 * entries + 1) ** 0.5 - 1) / 2)
    if size * (size + 1) // 2 != entries or entries < 1:
        raise ValueError(f"symmetric matrices have 1, 3, 6, 10, ... entries, got {entries}.")
    pairs = [(row, column) for row in range(size) for column in range(row, size)]
    return tuple(row for row, _ in pairs), tuple(column for _, column in pairs)


def _numbers(entries: int) -> list[list[int]]:
    """The entry that stands in each row and column."""
    number = {pair: entry for entry, pair in enumerate(zip(*symmetric_shape(entries), strict=True))}
    size = max(number)[0] + 1
    return [[number[min(row, column), max(row, column)] for column in range(size)] for row in range(size)]
