# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from monai_reg_ext.networks.layers.sampled_cost import sampled_cost
from monai_reg_ext.networks.layers.search_grid import SearchGrid
from monai_reg_ext.networks.layers.warp import sample

__all__ = ["offset_window_cost", "offset_window_mean"]


def offset_window_cost(
    fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid, offset: torch.Tensor
) -> torch.Tensor:
    """:py:func:`window_cost` around a displacement that differs from point to point.

    One displacement after the other, eight corners for every sample: for windows of some hundred displacements.

    Args:
        fixed: ``(B, C, *grid.size)`` features at the control points.
        moving: ``(B, C, i, j, k)`` features, in whose cells grid and offset count.
        grid: control points and displacements.
        offset: ``(B, 3, *grid.size)``, added to all displacements of a point. It gets no gradient.

    Returns:
        ``(B, *grid.window, *grid.size)`` float32.
    """
    cost = sampled_cost(fixed.float(), moving.float(), _places(grid, offset), grid.displacements)
    return cost.unflatten(1, grid.window)


def offset_window_mean(
    probabilities: torch.Tensor, values: torch.Tensor, grid: SearchGrid, offset: torch.Tensor
) -> torch.Tensor:
    """:py:func:`window_mean` around a displacement that differs from point to point.

    Args:
        probabilities: ``(B, *grid.window, *grid.size)``.
        values: ``(B, C, I, J, K)``, in whose voxels grid and offset count. They get no gradient.
        grid: control points and displacements.
        offset: ``(B, 3, *grid.size)``, see :py:func:`offset_window_cost`.

    Returns:
        ``(B, C, *grid.size)`` float32.
    """
    places, values = _places(grid, offset), values.detach().float()

    def share(probability: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        return probability * sample(values, places + displacement)

    displacements = grid.displacements.view(-1, 1, 3, 1, 1, 1)
    of_each = probabilities.float().flatten(1, 3).split(1, 1)
    return sum(checkpoint(share, *one, use_reentrant=False) for one in zip(of_each, displacements, strict=True))


def _places(grid: SearchGrid, offset: torch.Tensor) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*grid.points, indexing="ij")) + offset.detach()
