# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["cells_inside"]


def cells_inside(share: torch.Tensor) -> torch.Tensor:
    """Cells of a control grid that count: those of which at least half lies inside a mask.

    Args:
        share: ``(B, 1, *cells)``, how much of each cell lies inside, 0 to 1; a mask's :py:func:`pool_to_grid`.

    Returns:
        The same shape and dtype, 1 where a cell counts and 0 elsewhere. Of an item so thin that it fills no cell by
        half, every cell counts that it touches.
    """
    half = share >= 0.5
    thin = ~half.flatten(1).any(1).view(-1, *[1] * (share.dim() - 1))
    return (half | (thin & (share > 0))).to(share.dtype)
