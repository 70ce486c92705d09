# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.blocks.gauss_newton_estimator import GaussNewtonEstimator
from monai_reg_ext.networks.blocks.gauss_newton_stencils import GaussNewtonStencils
from monai_reg_ext.networks.layers.field_normal_equations import weight_at_field
from monai_reg_ext.networks.layers.normal_equations import normal_equations
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["LearnedGaussNewtonEstimator"]


class LearnedGaussNewtonEstimator(GaussNewtonEstimator):
    """Gauss-Newton registration whose slopes, differences and smoothness are learned: a network of unrolled steps.

    A :py:class:`GaussNewtonEstimator` that looks at the features through :py:class:`GaussNewtonStencils`, the same ones
    in every step. They begin as the conventional kernels and are trained through all steps, by a loss on what its field
    does, such as on warped labels; so are the logarithms of the first and the last step's weight of the regularisation
    (``log_regularization``), which want larger steps of an optimiser, or none to stay as given. Every step has
    equations that can be solved, whatever was learned; that it lowers an energy is up to it.

    Args:
        channels: of the features.
        axes: of the features, two or three. Those of :py:class:`RegistrationNet` have three.
        grid_spacing: cells of the features per cell of the control grid, 1, 2 or 4.
        iterations: see :py:class:`GaussNewtonEstimator`.
        regularization: with which it begins, see :py:class:`GaussNewtonEstimator`.
        coupled: see :py:class:`GaussNewtonEstimator`.
        damping: see :py:class:`GaussNewtonEstimator`.
        tolerance: relative residual of the equations, forward and backward.
        voxel_size: see :py:class:`GaussNewtonEstimator`.
        feature_spacing: see :py:class:`GaussNewtonEstimator`.
        training_iterations: see :py:class:`GaussNewtonEstimator`; the reference goes from 5 to 10.
        compat: see :py:class:`GaussNewtonStencils`; the reference's equations besides are those of ``coupled=False``.

    Shape:
        - fixed, moving, fixed_mask, moving_mask, coarse_ddf, output: see :py:class:`GaussNewtonEstimator`. A control
          point counts if all that its stencils read lies inside.

    Raises:
        ValueError: as :py:class:`GaussNewtonEstimator`, and for features with other channels or axes.

    Source: Heinrich, "Learning registration models with differentiable Gauss-Newton optimisation", MIDL 2022.
    """

    def __init__(
        self,
        channels: int = 1,
        axes: int = 3,
        grid_spacing: int = 4,
        iterations: int = 10,
        regularization: float | Sequence[float] = (150.0, 70.0),
        coupled: bool = True,
        damping: float = 0.0,
        tolerance: float = 1e-4,
        voxel_size: float | Sequence[float] = 1.0,
        feature_spacing: int | Sequence[int] = 1,
        training_iterations: int | None = None,
        compat: bool = False,
    ) -> None:
        super().__init__(
            grid_spacing=grid_spacing,
            iterations=iterations,
            regularization=regularization,
            coupled=coupled,
            dense=False,
            damping=damping,
            tolerance=tolerance,
            voxel_size=voxel_size,
            feature_spacing=feature_spacing,
            training_iterations=training_iterations,
        )
        self.stencils = GaussNewtonStencils(channels, axes, grid_spacing, compat)
        self.log_regularization = nn.Parameter(torch.tensor(ensure_tuple_rep(regularization, 2)).log())

    def schedule(self) -> torch.Tensor:
        first, last = self.log_regularization
        return (first + torch.linspace(0, 1, self.iterations).to(first) * (last - first)).exp()

    def _equations(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        field: torch.Tensor,
        fixed_weight: torch.Tensor | None,
        moving_weight: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ddf = self.at_features(field, fixed.shape[2:])
        slopes, difference = self.stencils(fixed, warp(moving, ddf))
        weight = self._at_points(weight_at_field(ddf, fixed_weight, moving_weight))
        nothing, on_points = torch.zeros_like(difference), [1] * len(slopes)
        return normal_equations(nothing, difference, on_points, slopes, weight, self.coupled)

    def _squares(self, fixed: torch.Tensor, warped: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        squares = self.stencils(fixed, warped)[1].square()
        return squares if weight is None else squares * self._at_points(weight)

    def _at_points(self, weight: torch.Tensor | None) -> torch.Tensor | None:
        return None if weight is None else self.stencils.least(weight)
