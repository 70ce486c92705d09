# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

from monai_reg_ext.networks.blocks.mean_field import MeanField
from monai_reg_ext.networks.blocks.window_estimator import WindowEstimator
from monai_reg_ext.networks.layers.displacement_distribution import (
    DisplacementDistribution,
    expected_displacement,
    field_on_cells,
)

__all__ = ["MeanFieldEstimator"]


class MeanFieldEstimator(WindowEstimator):
    """Probabilities of all displacements of a window at some control points, made smooth by mean field inference.

    Args:
        mean_field: a :py:class:`MeanField`, which several estimators may share; by default one of its own.
        window: arguments of :py:class:`WindowEstimator`: ``grid_spacing``, ``points``, ``labels``, ``fraction`` or
            ``reach``, ``compat``, ``mask_penalty``.

    Shape:
        - fixed, moving: ``(B, F, i, j, k)`` features on the grid of :py:meth:`spacing`.
        - fixed_mask, moving_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1. Control points of
          which it is less than half of the fixed one have no costs and follow their neighbours.
        - output: coarse_ddf ``(B, 3, i, j, k)`` in cells, expected displacements, linear between the control points.

    Raises:
        ValueError: when the search window is larger than the image.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019 (PDD-Net).
    """

    def __init__(self, mean_field: nn.Module | None = None, **window: object) -> None:
        super().__init__(**window)
        self.mean_field = MeanField() if mean_field is None else mean_field

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if torch.is_grad_enabled():
            distribution = self.distribution(fixed, moving, fixed_mask, moving_mask)
            return field_on_cells(distribution.mean(), distribution.grid, fixed.shape[2:])
        grid = self.search_grid(fixed)
        logits = self.mean_field(self.cost(fixed, moving, grid, fixed_mask, moving_mask))
        return field_on_cells(expected_displacement(logits.neg_(), grid), grid, fixed.shape[2:])

    def distribution(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> DisplacementDistribution:
        """All that the estimator knows, in cells; ``forward`` is its mean. For losses and refiners."""
        grid = self.search_grid(fixed)
        logits = self.mean_field(self.cost(fixed, moving, grid, fixed_mask, moving_mask))
        return DisplacementDistribution(logits.flatten(1, 3).softmax(1).view_as(logits), grid)

    @torch.no_grad()
    def covariance(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        refined: bool = True,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Covariance of the displacement that a registered pair leaves to find, as the search holds it probable.

        Args:
            fixed: ``(B, F, i, j, k)`` features.
            moving: the same of the **registered** moving image.
            refined: without effect: expected displacements are not counted in whole steps.
            fixed_mask: see the class.
            moving_mask: the same of the registered moving image.

        Returns:
            ``(B, 6, i, j, k)`` in cells squared, entries 00, 01, 02, 11, 12, 22.
        """
        distribution = self.distribution(fixed, moving, fixed_mask, moving_mask)
        return field_on_cells(distribution.covariance(), distribution.grid, fixed.shape[2:])
