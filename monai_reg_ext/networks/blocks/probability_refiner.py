# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.diffusion import diffusion
from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution, field_on_cells
from monai_reg_ext.networks.layers.planar_distribution import PlanarDistribution
from monai_reg_ext.networks.layers.sample_axes import sample_axes

__all__ = ["ProbabilityRefiner"]

# change of the probability per step between displacements below which a point is not moved at full pace
_NO_SLOPE = 1e-5


class ProbabilityRefiner(nn.Module):
    r"""Adam on the probabilities that an estimator has found: smooth displacements that are probable everywhere.

    Minimises :math:`-\text{mean}_k P_k(s(k)) + \lambda \sum_a \text{mean}\,(\partial_a s)^2` over the control values
    :math:`\theta` of the smoothed field :math:`s = \text{box}(\theta)`. Features are not looked at again, so that it
    takes a fraction of the search's time. Displacements count in steps between those of the window, whatever its size:
    with 15 displacements that reach 0.4 of half the image, the paper's weight 1.5 and step 0.02 are 0.005 and 0.35.

    Args:
        iterations: Adam steps; 0 only smooths the given field.
        regularization: weight :math:`\lambda` of the squared differences between neighbouring control points.
        learning_rate: Adam's step.
        smooth_widths: box filters that turn control values into the field.
        compat: the reference's zero-padded box filters.

    Shape:
        - fixed, moving: ``(B, F, i, j, k)`` features; only their grid matters.
        - coarse_ddf, output: ``(B, 3, i, j, k)`` in cells. The result leaves the graph.
        - distribution: of displacements in cells of that grid.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 3 (instance optimisation).
    """

    def __init__(
        self,
        iterations: int = 50,
        regularization: float = 0.005,
        learning_rate: float = 0.35,
        smooth_widths: Sequence[int] = (3, 3),
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.regularization = regularization
        self.learning_rate = learning_rate
        self.smooth_widths = tuple(smooth_widths)
        self.compat = compat

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        coarse_ddf: torch.Tensor,
        distribution: DisplacementDistribution | PlanarDistribution,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Masks have had their effect on the probabilities."""
        grid = distribution.grid
        field = self.at_points(distribution, sample_axes(coarse_ddf, grid.points))
        return field_on_cells(field, grid, coarse_ddf.shape[2:])

    def at_points(
        self, distribution: DisplacementDistribution | PlanarDistribution, start: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The field at the control points ``(B, 3, *grid.size)``, in the distribution's unit.

        Args:
            distribution: probabilities.
            start: field at the control points from which to start; by default the expected displacements.
        """
        # results leave the graph: the network in front is not trained through the optimisation
        with torch.inference_mode(False), torch.no_grad():
            start = distribution.mean() if start is None else start
            step = distribution.grid.step.view(3, 1, 1, 1)
            return self._optimise(distribution, start / step, step) * step

    def _optimise(
        self,
        distribution: DisplacementDistribution | PlanarDistribution,
        control_values: torch.Tensor,
        step: torch.Tensor,
    ) -> torch.Tensor:
        control_values.requires_grad_()
        # the energy is counted over all points, so that where probabilities hardly differ means the same on every grid
        points = control_values[0, 0].numel()
        optimizer = torch.optim.Adam([control_values], lr=self.learning_rate, eps=_NO_SLOPE)
        for _ in range(self.iterations):
            with torch.enable_grad():
                field = self._field(control_values)
                energy = -distribution.at(field * step).mean((1, 2, 3)) + self.regularization * diffusion(field)
                (control_values.grad,) = torch.autograd.grad(points * energy.sum(), control_values)
            optimizer.step()
        return self._field(control_values.detach())

    def _field(self, control_values: torch.Tensor) -> torch.Tensor:
        return box_filter(control_values, self.smooth_widths, self.compat)
