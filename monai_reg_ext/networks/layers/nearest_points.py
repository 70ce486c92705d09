# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["nearest_points"]

_BLOCK = 1 << 24  # distances at once


def nearest_points(points: torch.Tensor, number: int) -> torch.Tensor:
    """Which of some points are the nearest to each: the nearest first, which is itself unless points coincide.

    Args:
        points: ``(N, D)``, in a unit in which all axes mean the same.
        number: how many.

    Returns:
        Indices ``(N, min(number, N))`` int64.
    """
    kept = min(number, len(points))
    parts = points.detach().split(_BLOCK // max(1, len(points)) + 1)
    # the expansion by products loses the digits that tell near points apart
    distances = (torch.cdist(part, points.detach(), compute_mode="donot_use_mm_for_euclid_dist") for part in parts)
    return torch.cat([of_part.topk(kept, largest=False).indices for of_part in distances])
