# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch.quasirandom import SobolEngine

__all__ = ["points_in_mask"]

_LARGEST_DRAW = 2**20


def points_in_mask(inside: torch.Tensor, number: int) -> torch.Tensor:
    """Points spread evenly over a mask, the same ones every time: a Sobol sequence, of which those inside are kept.

    Args:
        inside: ``(B, 1, i, j, k)`` boolean.
        number: of points.

    Returns:
        ``(B, number, 3)`` float32 in cells; every point lies in a cell that is inside.

    Raises:
        ValueError: when a mask is empty.
    """
    return torch.stack([_of_one(item, number) for item in inside[:, 0]])


def _of_one(inside: torch.Tensor, number: int) -> torch.Tensor:
    where = inside.nonzero()
    if len(where) == 0:
        raise ValueError("points need a mask with a cell inside. Do mask and image belong together?")
    # a box around the mask: a small one would take long to hit
    first, last = where.amin(0), where.amax(0)
    extent = (last - first + 1).float()
    share = len(where) / extent.prod().item()
    drawn = min(int(2 * number / share) + 64, _LARGEST_DRAW)
    points = SobolEngine(3).draw(drawn).to(inside.device) * extent
    cells = first + points.long()
    found = points[inside[tuple(cells.T)]][:number] + first - 0.5
    if len(found) < number:
        rest = where[torch.arange(number - len(found), device=where.device) % len(where)]
        found = torch.cat([found, rest.float()])
    return found
