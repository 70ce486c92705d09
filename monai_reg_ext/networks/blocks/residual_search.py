# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_reg_ext.networks.blocks.coupled_convex_estimator import CoupledConvexEstimator
from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["ResidualSearch"]


class ResidualSearch(nn.Module):
    """Searches what a field has left over: a discrete search behind another one, on a finer grid, in a small window.

    The moving features are warped by the field so far, the search looks for what is missing, and both are composed. Its
    cost grows with the finer grid, not with the displacements that the first search has captured.

    Args:
        grid_spacing: voxels per cell, one number or one per axis.
        half_width: largest displacement of one round along each axis in cells.
        rounds: how often to warp and search.
        search: further arguments of :py:class:`CoupledConvexEstimator`, e.g. ``couplings``, ``sharpness``.

    Shape:
        - fixed, moving, fixed_mask, moving_mask: see :py:class:`CoupledConvexEstimator`.
        - coarse_ddf, output: ``(B, 3, i, j, k)`` in cells.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] = 1,
        half_width: int | Sequence[int] = 1,
        rounds: int = 1,
        inverse_consistency: int = 0,
        **search: object,
    ) -> None:
        super().__init__()
        self.search = CoupledConvexEstimator(
            grid_spacing, half_width, inverse_consistency=inverse_consistency, **search
        )
        self.rounds = rounds

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        return self.search.spacing(size)

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        coarse_ddf: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for _ in range(self.rounds):
            warped_mask = None if moving_mask is None else warp(moving_mask, coarse_ddf)
            residual = self.search(fixed, warp(moving, coarse_ddf), fixed_mask, warped_mask)
            coarse_ddf = compose_ddf(coarse_ddf, residual)
        return coarse_ddf
