# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

from monai_reg_ext.networks.blocks.mean_field import MeanField
from monai_reg_ext.networks.blocks.mean_field_estimator import MeanFieldEstimator
from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution, field_on_cells
from monai_reg_ext.networks.layers.planar_distribution import PlanarDistribution
from monai_reg_ext.networks.layers.search_grid import SearchGrid

__all__ = ["PlanarMeanFieldEstimator"]


class PlanarMeanFieldEstimator(MeanFieldEstimator):
    """Mean field inference over three orthogonal planes of displacements, a fifth of those in a cube.

    In the first step the planes go through the displacement 0. In later ones each goes through the displacement that
    the step before has found perpendicular to it.

    Args:
        steps: how often to search.
        refiner: what finds the displacement between two steps, e.g. a :py:class:`ProbabilityRefiner`; by default it is
            the mean.
        noise: in training, standard deviation of a random shift of the planes of later steps, in steps between
            displacements.
        mean_field: as in :py:class:`MeanFieldEstimator`, which averages the minima once by default.
        window: arguments of :py:class:`WindowEstimator`. With ``compat`` the default mean field smooths along two of
            three axes, as the reference does.

    Shape:
        - see :py:class:`MeanFieldEstimator`.

    Raises:
        ValueError: when the search window is larger than the image, or there are no steps.

    Source: Heinrich & Hansen, "Highly accurate and memory efficient unsupervised learning-based discrete CT
    registration using 2.5D displacement search", MICCAI 2020.
    """

    def __init__(
        self,
        steps: int = 2,
        refiner: nn.Module | None = None,
        noise: float = 0.0,
        mean_field: nn.Module | None = None,
        **window: object,
    ) -> None:
        if steps < 1:
            raise ValueError(f"PlanarMeanFieldEstimator needs steps >= 1, got {steps}.")
        if mean_field is None:
            widths = ((3, 3), (3, 3), (1,) if window.get("compat") else (3, 3))
            mean_field = MeanField(sharpness=5.0, averages=1, message_widths=widths)
        super().__init__(mean_field, **window)
        self.steps = steps
        self.refiner = refiner
        self.noise = noise

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        distribution = self.distribution(fixed, moving, fixed_mask, moving_mask)
        return field_on_cells(distribution.mean(), distribution.grid, fixed.shape[2:])

    def distribution(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> PlanarDistribution:
        sides = fixed, moving, fixed_mask, moving_mask
        grid, field = self.search_grid(fixed), None
        # only the last step is learned: where the planes go is not
        with torch.no_grad():
            for _ in range(self.steps - 1):
                field = self._found(self._planes(grid, field, *sides))
        return self._planes(grid, field, *sides)

    def _planes(self, grid: SearchGrid, field: torch.Tensor | None, *sides: torch.Tensor | None) -> PlanarDistribution:
        planes = []
        for axis in range(3):
            labels = [zero_only(one) if number == axis else one for number, one in enumerate(grid.labels)]
            of_plane = SearchGrid(grid.points, tuple(labels))
            offset = None if field is None else self._through(field, axis, grid)
            fixed, moving, *masks = sides
            logits = self.mean_field(self.cost(fixed, moving, of_plane, *masks, offset))
            probabilities = logits.flatten(1, 3).softmax(1).view_as(logits)
            planes.append(DisplacementDistribution(probabilities, of_plane, offset))
        return PlanarDistribution(tuple(planes))

    def _through(self, field: torch.Tensor, axis: int, grid: SearchGrid) -> torch.Tensor:
        """The field's component across a plane, the others 0."""
        offset = torch.zeros_like(field)
        offset[:, axis] = field[:, axis]
        if self.training and self.noise > 0:
            offset[:, axis] += self.noise * grid.step[axis] * torch.randn_like(offset[:, axis])
        return offset

    def _found(self, distribution: PlanarDistribution) -> torch.Tensor:
        """``(B, 3, *grid.size)`` in cells."""
        return distribution.mean() if self.refiner is None else self.refiner.at_points(distribution)


def zero_only(labels: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(labels[:1])
