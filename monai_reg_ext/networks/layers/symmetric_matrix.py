# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["COLUMNS", "ENTRIES", "ROWS", "entries_of", "matrices_of"]

# row and column of the six entries of a symmetric 3 x 3 matrix, in the order in which they stand as channels
ROWS, COLUMNS = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
ENTRIES = ((0, 1, 2), (1, 3, 4), (2, 4, 5))


def matrices_of(entries: torch.Tensor) -> torch.Tensor:
    """Symmetric matrices ``(B, 3, 3, ...)`` from their entries 00, 01, 02, 11, 12, 22, ``(B, 6, ...)``."""
    return entries[:, ENTRIES]


def entries_of(matrices: torch.Tensor) -> torch.Tensor:
    """The entries ``(B, 6, ...)`` of symmetric matrices ``(B, 3, 3, ...)``; the lower triangle is not looked at."""
    return matrices[:, ROWS, COLUMNS]
