# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import torch

__all__ = ["add_mask_channel"]


def add_mask_channel(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    fixed_mask: torch.Tensor | None,
    moving_mask: torch.Tensor | None,
    penalty: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One more feature, by which a pair of cells costs more where only one of them lies inside its mask.

    The channel is 0 inside and ``-sqrt(penalty)`` outside: the squared difference of the features grows by the penalty
    when a cell inside is compared with one outside. Cells across a mask's border lie in between, in step with the
    features that were averaged over them. Beyond the grid, where features count as 0, nothing changes.

    Args:
        fixed: ``(B, F, i, j, k)`` features.
        moving: ``(B, F, i, j, k)`` features.
        fixed_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1; ``None``: all of every cell.
        moving_mask: the same of the moving features.
        penalty: on the scale of the features' squared difference, ``>= 0``.

    Returns:
        Both features with ``F + 1`` channels; without masks or penalty the features as they came.

    Raises:
        ValueError: when the penalty is negative.
    """
    if not penalty >= 0:
        raise ValueError(f"mask_penalty must be >= 0 so that leaving a mask does not pay, got {penalty}.")
    if penalty == 0 or (fixed_mask is None and moving_mask is None):
        return fixed, moving
    return _with_channel(fixed, fixed_mask, penalty), _with_channel(moving, moving_mask, penalty)


def _with_channel(features: torch.Tensor, mask: torch.Tensor | None, penalty: float) -> torch.Tensor:
    inside = torch.ones_like(features[:, :1]) if mask is None else mask.to(features)
    return torch.cat([features, math.sqrt(penalty) * (inside - 1)], 1)
