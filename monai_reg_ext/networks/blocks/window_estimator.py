# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.layers.mask_channel import add_mask_channel
from monai_reg_ext.networks.layers.offset_window import offset_window_cost
from monai_reg_ext.networks.layers.sample_axes import sample_axes
from monai_reg_ext.networks.layers.search_grid import SearchGrid, search_grid
from monai_reg_ext.networks.layers.window_cost import window_cost

__all__ = ["WindowEstimator"]


class WindowEstimator(nn.Module):
    """What estimators share that look at a window of displacements from some control points.

    Control points and displacements lie between the cells of the features, wherever their numbers put them.

    Args:
        grid_spacing: voxels per cell of the features, one number or one per axis.
        points: control points along each axis.
        labels: displacements along each axis, an odd number to have 0 among them.
        fraction: largest displacement along each axis as a fraction of half the image.
        reach: the same in voxels, takes the place of ``fraction``.
        compat: the reference's positions: the outermost control points in the centres of the outermost cells.
        mask_penalty: what it costs, with masks, to go from inside the one to outside the other; on the scale of the
            features' squared difference.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] = 3,
        points: int | Sequence[int] = 32,
        labels: int | Sequence[int] = 15,
        fraction: float | Sequence[float] = 0.4,
        reach: float | Sequence[float] | None = None,
        compat: bool = False,
        mask_penalty: float = 4.0,
    ) -> None:
        super().__init__()
        self.grid_spacing = ensure_tuple_rep(grid_spacing, 3)
        self.points = ensure_tuple_rep(points, 3)
        self.labels = ensure_tuple_rep(labels, 3)
        self.fraction = ensure_tuple_rep(fraction, 3)
        self.reach = None if reach is None else ensure_tuple_rep(reach, 3)
        self.compat = compat
        self.mask_penalty = mask_penalty

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        return self.grid_spacing

    def search_grid(self, features: torch.Tensor) -> SearchGrid:
        """Control points and displacements for features ``(B, F, i, j, k)``, in their cells.

        Raises:
            ValueError: when the window is larger than the image.
        """
        cells = features.shape[2:]
        if self.reach is None:
            reach = [part * (extent - self.compat) / 2 for part, extent in zip(self.fraction, cells, strict=True)]
        else:
            reach = [far / step for far, step in zip(self.reach, self.grid_spacing, strict=True)]
        return search_grid(cells, self.points, self.labels, reach, features, self.compat)

    def cost(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        grid: SearchGrid,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Squared differences of features ``(B, F, i, j, k)``, 0 at control points outside of the fixed mask.

        Returns:
            ``(B, *grid.window, *grid.size)``, see :py:func:`window_cost`, and :py:func:`offset_window_cost` for the
            offset.
        """
        fixed, moving = add_mask_channel(fixed, moving, fixed_mask, moving_mask, self.mask_penalty)
        fixed = sample_axes(fixed, grid.points)
        sides = fixed, moving, grid
        cost = window_cost(*sides) if offset is None else offset_window_cost(*sides, offset)
        if fixed_mask is not None:
            cost = cost * (sample_axes(fixed_mask, grid.points) >= 0.5)[:, :, None, None]
        return cost
