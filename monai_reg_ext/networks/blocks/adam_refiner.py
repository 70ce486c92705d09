# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.compat import reference_stretch
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import identity_grid, sample

__all__ = ["AdamRefiner"]


class AdamRefiner(nn.Module):
    r"""Instance optimisation of a displacement field on features with Adam.

    Minimises :math:`\frac1N \sum_x |M(x + s(x)) - F(x)|^2 + \lambda \cdot \text{diffusion}(s)` over the control
    values :math:`\theta` of the smoothed field :math:`s = \text{box}(\theta)`, both counted in cells.

    Args:
        grid_spacing: voxels per cell of the optimised field and of the pooled features.
        iterations: Adam steps; 0 only smooths the given field.
        regularization: weight :math:`\lambda` of the squared differences between neighbouring cells.
        smooth_widths: box filters that turn control values into the field; more or wider boxes, smoother fields.
        final_widths: box filters over the result at full resolution; none by default.
        learning_rate: Adam's step, in cells.
        compat: convexAdam's borders and sampling, its factor 12 whatever the number of channels, its dropped tails,
            and its result before the last step.

    Shape:
        - fixed, moving: ``(B, F, I, J, K)`` features of one grid.
        - ddf, output: ``(B, 3, I, J, K)`` in voxels.

    Source: ConvexAdam, Adam instance optimisation.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] = 2,
        iterations: int = 80,
        regularization: float = 1.25,
        smooth_widths: Sequence[int] = (3, 3, 3),
        final_widths: Sequence[int] = (),
        learning_rate: float = 1.0,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.grid_spacing = ensure_tuple_rep(grid_spacing, 3)
        self.iterations = iterations
        self.regularization = regularization
        self.smooth_widths = tuple(smooth_widths)
        self.final_widths = tuple(final_widths)
        self.learning_rate = learning_rate
        self.compat = compat

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        # results leave the graph: the network in front is not trained through the optimisation
        fixed, moving = (pool_to_grid(f.detach().float(), self.grid_spacing, self.compat) for f in (fixed, moving))
        control_values = downsample_ddf(ddf.detach().float(), self.grid_spacing, self.compat)
        with torch.inference_mode(False), torch.enable_grad():
            field = self._optimise(fixed.clone(), moving.clone(), control_values.clone().requires_grad_())
        ddf = upsample_ddf(field, self.grid_spacing, ddf.shape[2:], self.compat)
        return box_filter(ddf, self.final_widths, self.compat)

    def _optimise(self, fixed: torch.Tensor, moving: torch.Tensor, control_values: torch.Tensor) -> torch.Tensor:
        optimizer = torch.optim.Adam([control_values], lr=self.learning_rate)
        identity = identity_grid(fixed.shape[2:], fixed)
        field = self._field(control_values)
        for step in range(self.iterations):
            optimizer.zero_grad()
            self._energy(fixed, moving, field, identity).backward()
            optimizer.step()
            if not (self.compat and step == self.iterations - 1):
                field = self._field(control_values)
        return field.detach()

    def _field(self, control_values: torch.Tensor) -> torch.Tensor:
        return box_filter(control_values, self.smooth_widths, self.compat)

    def _energy(
        self, fixed: torch.Tensor, moving: torch.Tensor, field: torch.Tensor, identity: torch.Tensor
    ) -> torch.Tensor:
        if self.compat:
            warped = sample(moving, identity + field * reference_stretch(field), padding="zeros")
        else:
            warped = sample(moving, identity + field, padding="border")
        channels = 12 if self.compat else fixed.shape[1]
        # sums over the batch keep its items independent of one another
        data = channels * (warped - fixed).square().mean((1, 2, 3, 4)).sum()
        roughness = sum(field.diff(dim=dim).square().mean((1, 2, 3, 4)).sum() for dim in (2, 3, 4))
        return data + self.regularization * roughness
