# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.displacement_posterior import displacement_moments
from monai_reg_ext.networks.layers.sample_axes import sample_axes
from monai_reg_ext.networks.layers.search_grid import SearchGrid
from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS

__all__ = ["DisplacementDistribution", "expected_displacement", "field_on_cells"]


class DisplacementDistribution(NamedTuple):
    """How probable every displacement of a window is at every control point.

    - ``probabilities``: ``(B, l_0, l_1, l_2, i, j, k)``, their sum over the displacements is 1.
    - ``grid``: the control points and displacements, in cells of the features where an estimator gives it, in voxels
      of the images where :py:class:`monai_reg_ext.networks.nets.RegistrationNet` does.
    """

    probabilities: torch.Tensor
    grid: SearchGrid

    def mean(self) -> torch.Tensor:
        """``(B, 3, i, j, k)`` expected displacement of every control point."""
        return self._expected(self.grid.displacements)

    def covariance(self) -> torch.Tensor:
        """``(B, 6, i, j, k)`` covariance of the displacement, entries 00, 01, 02, 11, 12, 22."""
        displacements, mean = self.grid.displacements, self.mean()
        squares = self._expected(displacements[:, ROWS] * displacements[:, COLUMNS])
        return squares - mean[:, ROWS] * mean[:, COLUMNS]

    def _expected(self, values: torch.Tensor) -> torch.Tensor:
        # bfloat16 has too few digits for the sum of thousands of displacements
        with torch.autocast(values.device.type, enabled=False):
            probabilities = self.probabilities.flatten(1, 3).flatten(2)
            expected = values.T.to(probabilities).expand(len(probabilities), -1, -1) @ probabilities
        return expected.unflatten(2, self.grid.size)


@torch.no_grad()
def expected_displacement(cost: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    """``DisplacementDistribution(softmax(-cost), grid).mean()`` in one sweep: probabilities never exist as a whole.

    Args:
        cost: ``(B, *grid.window, *grid.size)``.
        grid: control points and displacements.

    Returns:
        ``(B, 3, *grid.size)`` in the grid's unit, without gradients.
    """
    volume = DenseCostVolume(cost.flatten(1, 3), grid.displacements)
    nowhere = volume.labels.new_zeros(len(cost), 3, *grid.size)
    return displacement_moments(volume, nowhere, 0.0, 1.0)[0]


def field_on_cells(field: torch.Tensor, grid: SearchGrid, extent: Sequence[int]) -> torch.Tensor:
    """Values at control points to all cells of the volume in which the grid counts.

    Linear between the points, beyond the outermost ones constant.

    Args:
        field: ``(B, C, *grid.size)``.
        grid: control points.
        extent: cells of the volume along each axis.

    Returns:
        ``(B, C, *extent)``.
    """
    positions = []
    for points, cells in zip(grid.points, extent, strict=True):
        spacing = points[1] - points[0] if len(points) > 1 else 1.0
        positions.append((torch.arange(cells, device=points.device, dtype=points.dtype) - points[0]) / spacing)
    return sample_axes(field, positions)
