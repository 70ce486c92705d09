# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.compat import reference_stretch
from monai_reg_ext.networks.layers.warp import identity_grid

__all__ = ["FeatureEnergy"]


class FeatureEnergy:
    r"""Dissimilarity of features along a field, plus the field's roughness, with its gradient.

    :math:`\frac{w}{N} \sum_x m(x) |M(x + s(x)) - F(x)|^2 + \lambda \sum_a \text{mean}\,(\partial_a s)^2`, the
    derivatives being differences of neighbouring cells, over all three components. The gradient is written down, not
    differentiated: features need none, and neither a graph nor its temporaries are built.

    Args:
        fixed: ``(B, F, i, j, k)``, float32 or float64.
        moving: ``(B, F, i, j, k)``.
        regularization: weight :math:`\lambda`.
        data_weight: weight *w* of the squared difference, summed over the features and averaged over the cells.
        compat: the reference's sampling: displacements stretched by ``N / (N - 1)``, zeros outside the grid instead of
            the nearest cell.
        cell_weight: ``(B, 1, i, j, k)``, factor *m* of every cell's squared difference, 1 by default. *N* stays the
            number of all cells, so that the others keep their balance with the regularisation.

    Source: ConvexAdam, Adam instance optimisation.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        regularization: float,
        data_weight: float = 1.0,
        compat: bool = False,
        cell_weight: torch.Tensor | None = None,
    ) -> None:
        self.regularization = regularization
        self.data_weight = data_weight
        self.stretch = reference_stretch(fixed) if compat else None
        self.padding = "zeros" if compat else "border"
        size = fixed.shape[2:]
        twin = compiled_twin("feature_energy", fixed, moving) if min(size) > 1 else None
        self._compiled = twin and twin.CompiledFeatureEnergy(
            fixed, moving, regularization, data_weight, self.stretch, cell_weight
        )
        if self._compiled is None:
            self.fixed, self.moving, self.cell_weight = fixed, moving, cell_weight
            self.identity = identity_grid(size, fixed)

    def gradient(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient ``(B, 3, i, j, k)`` at a field in cells, and the energy ``(B,)`` there."""
        if self._compiled is not None:
            return self._compiled.gradient(field)
        data_gradient, data = self._data(field)
        smoothness_gradient, roughness = self._roughness(field)
        return data_gradient.add_(smoothness_gradient), data + roughness

    def _data(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coordinates = self.identity + (field if self.stretch is None else field * self.stretch)
        size = field.shape[2:]
        # grid_sample's own convention: last axis first, -1 and 1 at the outer faces
        grid = torch.stack([(2 * coordinates[:, a] + 1) / size[a] - 1 for a in (2, 1, 0)], -1)
        padding = {"zeros": 0, "border": 1}[self.padding]
        warped = torch.ops.aten.grid_sampler_3d(self.moving, grid, 0, padding, False)
        difference = warped.sub_(self.fixed)
        weighted = difference if self.cell_weight is None else difference * self.cell_weight
        weight = self.data_weight / difference[0, 0].numel()
        energy = weight * (weighted * difference).sum((1, 2, 3, 4))
        _, gradient = torch.ops.aten.grid_sampler_3d_backward(
            weighted.mul_(2 * weight), self.moving, grid, 0, padding, False, [False, True]
        )
        scale = [2 / extent for extent in size]
        gradient = torch.stack([gradient[..., 2 - a] * scale[a] for a in range(3)], 1)
        return (gradient if self.stretch is None else gradient.mul_(self.stretch)), energy

    def _roughness(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient, energy = torch.zeros_like(field), field.new_zeros(len(field))
        for dim in (2, 3, 4):
            size = field.shape[dim]
            if size > 1:
                difference = field.diff(dim=dim)
                weight = self.regularization / difference[0].numel()
                energy += weight * difference.square().sum((1, 2, 3, 4))
                difference *= 2 * weight
                gradient.narrow(dim, 1, size - 1).add_(difference)
                gradient.narrow(dim, 0, size - 1).sub_(difference)
        return gradient, energy
