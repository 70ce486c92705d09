# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.layers.cells_inside import cells_inside
from monai_reg_ext.networks.layers.field_normal_equations import (
    check_slopes,
    field_normal_equations,
    weight_at_field,
)
from monai_reg_ext.networks.layers.graph_laplacian import graph_laplacian
from monai_reg_ext.networks.layers.pool_to_grid import grid_size, pool_to_grid
from monai_reg_ext.networks.layers.solve_normal_equations import solve_normal_equations
from monai_reg_ext.networks.layers.symmetric_matrix import entries_of
from monai_reg_ext.networks.layers.upsample_ddf import upsample_ddf
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["GaussNewtonEstimator"]

_REFERENCE_MOMENTUM = 0.5


class GaussNewtonEstimator(nn.Module):
    r"""Second-order registration: few steps, each of which solves for all displacements at once.

    Minimises :math:`\frac{1}{2V} \sum_x |M(x + u(x)) - F(x)|^2 + \frac{\lambda}{2} u^T L u` over the displacements of
    control points whose cells have *V* voxels: the moving features are warped by the field so far, their difference is
    linearised, and :py:func:`solve_normal_equations` gives the change. The regularisation acts on the whole
    displacement, so that homogeneous regions follow their surroundings.

    Estimator and refiner in one: as a refiner it starts from the field that it is given. All of it has gradients, those
    through the equations without the iterations of their solution; features and what lies before can be trained.

    Args:
        grid_spacing: cells of the features per cell of the control grid, one number or one per axis. The features
            themselves stay fine, see ``feature_spacing``.
        iterations: steps; the features are warped anew for each.
        regularization: weight :math:`\lambda`, one for all steps, or that of the first and the last one, between which
            it falls geometrically. Scaling the features by *s* needs it scaled by *s* squared; the default suits
            :py:class:`SignedDistanceFeatures`.
        coupled: solve for all components together. ``False`` as the reference: every component by itself, which needs
            a high regularisation.
        dense: see :py:func:`normal_equations`.
        slopes: see :py:func:`field_normal_equations`; with others than ``"warped"`` or not dense, a CPU needs some
            times as long.
        damping: see :py:func:`solve_normal_equations`.
        backtracking: how often a step that would raise the energy is halved; if it still would, it is not taken, so
            that the energy falls in every step. 0 takes every step as it is, in less than half of the time.
        tolerance: relative residual of the equations.
        voxel_size: edges of a feature's cell, in any unit: the field is as smooth in space as along axes of equal
            steps. The weight keeps its meaning, since only ratios count.
        feature_spacing: voxels per cell of the features that it asks for, one number or one per axis.
        compat: the reference's momentum of 0.5, and its result before the last step. Its equations are those of
            ``coupled=False, dense=False``.
        training_iterations: how many of the steps are taken in training mode, the first ones; all by default. May be
            raised while a training goes on.

    Shape:
        - fixed, moving: ``(B, F, *size)``, features on one grid, two or three axes.
        - fixed_mask, moving_mask: ``(B, 1, *size)``, how much of each cell lies inside, 0 to 1. Cells of which it is
          less than half are not compared.
        - coarse_ddf, output: ``(B, D, *size)`` in cells of the features; linear between the centres of control cells.

    Raises:
        ValueError: for a regularisation that is not above 0, backtracking below 0, unknown slopes, features not
            finite or not on one grid.

    Source: Heinrich, "Learning registration models with differentiable Gauss-Newton optimisation", MIDL 2022.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] = 4,
        iterations: int = 10,
        regularization: float | Sequence[float] = (125.0, 25.0),
        coupled: bool = True,
        dense: bool = True,
        slopes: str = "warped",
        damping: float = 0.0,
        backtracking: int = 0,
        tolerance: float = 1e-3,
        voxel_size: float | Sequence[float] = 1.0,
        feature_spacing: int | Sequence[int] = 1,
        compat: bool = False,
        training_iterations: int | None = None,
    ) -> None:
        super().__init__()
        self.grid_spacing = grid_spacing
        self.iterations = iterations
        self.regularization = regularization
        self.coupled = coupled
        self.dense = dense
        self.slopes = slopes
        self.damping = damping
        self.backtracking = backtracking
        self.tolerance = tolerance
        self.voxel_size = voxel_size
        self.feature_spacing = feature_spacing
        self.compat = compat
        self.training_iterations = training_iterations
        check_slopes(slopes)
        _check_weights(regularization)
        if backtracking < 0:
            raise ValueError(f"backtracking must be 0 halvings of a step or more, got {backtracking}.")

    def spacing(self, size: Sequence[int]) -> tuple[int, ...]:
        """Voxels per cell of the features along each axis for an image of this size."""
        return ensure_tuple_rep(self.feature_spacing, len(size))

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        coarse_ddf: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        fields = list(self.fields(fixed, moving, coarse_ddf, fixed_mask, moving_mask))
        kept = fields[-2] if self.compat and len(fields) > 1 else fields[-1]
        return self.at_features(kept, fixed.shape[2:])

    def fields(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        coarse_ddf: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """The field at the control points ``(B, D, *cells)``, in cells of the features: at the start, after every step.

        Args:
            fixed: see the class.
            moving: see the class.
            coarse_ddf: see the class; no displacement by default.
            fixed_mask: see the class.
            moving_mask: see the class.
        """
        field = self._start(fixed, moving, coarse_ddf)
        weights = _weights(field, fixed_mask, moving_mask)
        change = torch.zeros_like(field)
        parts = self._parts(fixed, moving, field, *weights) if self.backtracking else None
        yield field
        taken = self.training_iterations if self.training else None
        for regularization in self.schedule()[:taken]:
            step = self._step(fixed, moving, field, regularization, *weights)
            change = _REFERENCE_MOMENTUM * change + step if self.compat else step
            if parts is not None:
                share, parts = self._share((fixed, moving), field, change, regularization, parts, *weights)
                change = share * change
            field = field + change
            yield field

    def schedule(self) -> Sequence[float] | torch.Tensor:
        """The weight of the regularisation in every step."""
        return np.geomspace(*ensure_tuple_rep(self.regularization, 2), self.iterations).tolist()

    def at_features(self, field: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """A field at the control points, ``(B, D, *cells)``, in all cells of the features, ``(B, D, *size)``."""
        return upsample_ddf(*self._in_cells(field), size)

    def energy(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        field: torch.Tensor,
        regularization: float | torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is minimised, ``(B,)``, at a field of :py:meth:`fields`."""
        data, roughness = self._parts(fixed, moving, field, *_weights(field, fixed_mask, moving_mask))
        return data + regularization * roughness

    def _start(self, fixed: torch.Tensor, moving: torch.Tensor, coarse_ddf: torch.Tensor | None) -> torch.Tensor:
        axes = fixed.dim() - 2
        spacing = ensure_tuple_rep(self.grid_spacing, axes)
        if fixed.shape != moving.shape:
            raise ValueError(
                f"GaussNewtonEstimator needs fixed and moving features on one grid, got {tuple(fixed.shape)} and "
                f"{tuple(moving.shape)}."
            )
        if coarse_ddf is None:
            dtype = torch.promote_types(fixed.dtype, torch.float32)
            return fixed.new_zeros((len(fixed), axes, *grid_size(fixed.shape[2:], spacing)), dtype=dtype)
        return pool_to_grid(coarse_ddf, spacing)

    def _step(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        field: torch.Tensor,
        regularization: float | torch.Tensor,
        fixed_weight: torch.Tensor | None,
        moving_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        matrix, right_side = self._equations(fixed, moving, field, fixed_weight, moving_weight)
        length, weights = self._metric(field)
        right_side = right_side / length - regularization * graph_laplacian(field * length, weights)
        matrix = matrix / _products(length, self.coupled)
        settings = {"damping": self.damping, "tolerance": self.tolerance}
        return solve_normal_equations(matrix, right_side, regularization, weights, **settings).values / length

    def _equations(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        field: torch.Tensor,
        fixed_weight: torch.Tensor | None,
        moving_weight: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix and right side of one step."""
        form = self.slopes, fixed_weight, moving_weight, self.coupled, self.dense
        return field_normal_equations(fixed, moving, *self._in_cells(field), *form)

    def _parts(
        self, fixed: torch.Tensor, moving: torch.Tensor, field: torch.Tensor, *weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both parts of the energy, ``(B,)`` each, the roughness without its weight."""
        ddf = self.at_features(field, fixed.shape[2:])
        squares = self._squares(fixed, warp(moving, ddf), weight_at_field(ddf, *weights))
        length, of_axes = self._metric(field)
        even = field * length
        roughness = even * graph_laplacian(even, of_axes)
        return squares.flatten(1).sum(1) / 2, roughness.flatten(1).sum(1) / 2

    @torch.no_grad()
    def _share(
        self,
        pair: tuple[torch.Tensor, torch.Tensor],
        field: torch.Tensor,
        change: torch.Tensor,
        regularization: float | torch.Tensor,
        parts: tuple[torch.Tensor, torch.Tensor],
        *weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """How much of a change, ``(B, 1, ...)``, lowers the energy, and the energy's parts after it."""
        before = parts[0] + regularization * parts[1]
        share = field.new_ones(len(field), *[1] * (field.dim() - 1))
        for halvings in range(self.backtracking + 1):
            after = self._parts(*pair, field + share * change, *weights)
            rises = ~(after[0] + regularization * after[1] <= before)
            # asking a GPU would make it wait
            if field.device.type == "cpu" and not rises.any():
                break
            shorter = share / 2 if halvings < self.backtracking else torch.zeros_like(share)
            share = torch.where(rises.view_as(share), shorter, share)
        taken = share.flatten() > 0
        data, roughness = (torch.where(taken, new, old) for new, old in zip(after, parts, strict=True))
        return share, (data, roughness)

    def _squares(self, fixed: torch.Tensor, warped: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """What the energy adds up."""
        spacing = ensure_tuple_rep(self.grid_spacing, fixed.dim() - 2)
        difference = warped - fixed
        weighted = difference if weight is None else difference * weight
        return difference * weighted / math.prod(spacing) if self.dense else pool_to_grid(weighted, spacing).square()

    def _in_cells(self, field: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        """A field at the control points in cells of their grid, and its spacing."""
        spacing = ensure_tuple_rep(self.grid_spacing, field.dim() - 2)
        return field / _per_axis(spacing, field), spacing

    def _metric(self, field: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        """How long a displacement along each axis is, and what a difference along it weighs; 1 for even cells."""
        axes = field.dim() - 2
        voxel = np.array(ensure_tuple_rep(self.voxel_size, axes), dtype=float)
        length = voxel / np.exp(np.log(voxel).mean())
        cell = voxel * ensure_tuple_rep(self.grid_spacing, axes)
        weights = (np.exp(np.log(cell).mean()) / cell) ** 2
        return _per_axis(length.tolist(), field), weights.tolist()


def _check_weights(regularization: float | Sequence[float]) -> None:
    ends = np.array(ensure_tuple_rep(regularization, 2), dtype=float)
    if not (np.isfinite(ends).all() and (ends > 0).all()):
        raise ValueError(
            f"regularization must be > 0, so that cells without gradient follow others, got {regularization}."
        )


def _weights(field: torch.Tensor, *masks: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if mask is None else cells_inside(mask).to(field.dtype) for mask in masks]


def _per_axis(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, *[1] * (like.dim() - 2))


def _products(length: torch.Tensor, coupled: bool) -> torch.Tensor:
    """Squared lengths for every entry of a matrix."""
    return entries_of(length.unsqueeze(1) * length.unsqueeze(2)) if coupled else length.square()
