# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.layers.coupled_convex import COUPLINGS, coupled_convex
from monai_reg_ext.networks.layers.inverse_consistency import make_inverse_consistent
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.ssd_cost_volume import displacement_labels, ssd_cost_volume

__all__ = ["CoupledConvexEstimator"]


class CoupledConvexEstimator(nn.Module):
    """Discrete search over a dense window of displacements, regularised by coupled convex optimisation.

    Args:
        grid_spacing: voxels per cell of the control grid, one number or one per axis. ``None`` chooses it from the
            size: about 35 cells along an axis of average length, between 2 and 6 voxels.
        half_width: largest displacement along each axis in cells; ``half_width * grid_spacing`` voxels are captured.
        inverse_consistency: rounds that bring the field and its opposite together; 0 searches in one direction only.
        couplings: weights that tie the search to the smoothed field. Scaling the features by *s* needs them scaled by
            *s* squared.
        compat: convexAdam's borders, sampling and dropped tails.

    Shape:
        - fixed, moving: ``(B, F, I, J, K)`` features of one grid.
        - output: coarse_ddf ``(B, 3, i, j, k)`` in cells of :py:meth:`spacing`.

    Raises:
        ValueError: when the search window is larger than the image.

    Source: ConvexAdam, convex stage.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] | None = None,
        half_width: int | Sequence[int] = 4,
        inverse_consistency: int = 15,
        couplings: Sequence[float] = COUPLINGS,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.grid_spacing = None if grid_spacing is None else ensure_tuple_rep(grid_spacing, 3)
        self.half_width = ensure_tuple_rep(half_width, 3)
        self.inverse_consistency = inverse_consistency
        self.couplings = tuple(couplings)
        self.compat = compat

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        if self.grid_spacing is not None:
            return self.grid_spacing
        length = (size[0] * size[1] * size[2]) ** (1 / 3)
        return (min(6, max(2, round(length / 35))),) * 3

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        spacing = self.spacing(fixed.shape[2:])
        self._check_window(fixed.shape[2:], spacing)
        fixed, moving = (pool_to_grid(features, spacing, self.compat) for features in (fixed, moving))
        forward = self._search(fixed, moving)
        if self.inverse_consistency == 0:
            return forward
        backward = self._search(moving, fixed)
        return make_inverse_consistent(forward, backward, self.inverse_consistency, self.compat)[0]

    def _search(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        cost = ssd_cost_volume(fixed, moving, self.half_width, compat=self.compat)
        return coupled_convex(cost, displacement_labels(self.half_width, cost), self.couplings, self.compat)

    def _check_window(self, size: Sequence[int], spacing: Sequence[int]) -> None:
        reach = tuple(cells * step for cells, step in zip(self.half_width, spacing, strict=True))
        if any(voxels >= extent for voxels, extent in zip(reach, size, strict=True)):
            raise ValueError(
                f"The search reaches {reach} voxels to each side, beyond an image of {tuple(size)} voxels. Choose a "
                f"smaller half_width (now {self.half_width}) or grid_spacing (now {tuple(spacing)}), or resample the "
                "images to smaller voxels."
            )
