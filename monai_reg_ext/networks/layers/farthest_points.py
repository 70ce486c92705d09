# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["farthest_points"]


def farthest_points(points: torch.Tensor, number: int) -> torch.Tensor:
    """Choose points that cover the space of all of them evenly: each is the farthest from those before it.

    Args:
        points: ``(N, D)``; the first is chosen first.
        number: how many.

    Returns:
        Indices ``(min(number, N),)`` int64, none twice unless points coincide.
    """
    chosen = torch.zeros(min(number, len(points)), dtype=torch.int64, device=points.device)
    nearest = points.new_full((len(points),), torch.inf)
    for place in range(1, len(chosen)):
        last = points.index_select(0, chosen[place - 1 : place])
        nearest = torch.minimum(nearest, (points - last).square().sum(1))
        chosen[place] = nearest.argmax()
    return chosen
