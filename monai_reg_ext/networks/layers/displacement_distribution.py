# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.diffusion import diffusion
from monai_reg_ext.networks.layers.displacement_posterior import displacement_moments
from monai_reg_ext.networks.layers.offset_window import offset_window_mean
from monai_reg_ext.networks.layers.sample_axes import sample_axes
from monai_reg_ext.networks.layers.search_grid import SearchGrid
from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS
from monai_reg_ext.networks.layers.window_mean import window_mean

__all__ = ["DisplacementDistribution", "expected_displacement", "field_on_cells"]


class DisplacementDistribution(NamedTuple):
    """How probable every displacement of a window is at every control point.

    - ``probabilities``: ``(B, l_0, l_1, l_2, i, j, k)``, their sum over the displacements is 1.
    - ``grid``: the control points and displacements, in cells of the features where an estimator gives it, in voxels
      of the images where :py:class:`monai_reg_ext.networks.nets.RegistrationNet` does.
    - ``offset``: ``(B, 3, i, j, k)`` in the same unit, added to all displacements of a point, or ``None``.
    """

    probabilities: torch.Tensor
    grid: SearchGrid
    offset: torch.Tensor | None = None

    def mean(self) -> torch.Tensor:
        """``(B, 3, i, j, k)`` expected displacement of every control point."""
        mean = self._expected(self.grid.displacements)
        return mean if self.offset is None else mean + self.offset

    def covariance(self) -> torch.Tensor:
        """``(B, 6, i, j, k)`` covariance of the displacement, entries 00, 01, 02, 11, 12, 22."""
        displacements = self.grid.displacements
        mean = self._expected(displacements)
        squares = self._expected(displacements[:, ROWS] * displacements[:, COLUMNS])
        return squares - mean[:, ROWS] * mean[:, COLUMNS]

    def seen(self, values: torch.Tensor) -> torch.Tensor:
        """``(B, C, i, j, k)`` what the points expect to see of ``values (B, C, I, J, K)``, in whose voxels all counts.

        See :py:func:`window_mean`.
        """
        if self.offset is None:
            return window_mean(self.probabilities, values, self.grid)
        return offset_window_mean(self.probabilities, values, self.grid, self.offset)

    def here(self, values: torch.Tensor) -> torch.Tensor:
        """``(B, C, i, j, k)`` values at the points themselves."""
        return sample_axes(values, self.grid.points)

    def roughness(self) -> torch.Tensor:
        """Diffusion of the expected displacements in steps between those of the window, mean over the batch."""
        return diffusion(self.mean() / self.grid.step.view(3, 1, 1, 1)).mean()

    def at(self, field: torch.Tensor) -> torch.Tensor:
        """``(B, i, j, k)`` probabilities of given displacements ``(B, 3, i, j, k)``.

        Linear between the displacements of the window, 0 outside; with gradients to the field, not to the
        probabilities. Where there is but one displacement along an axis, that component does not matter.
        """
        if self.offset is not None:
            field = field - self.offset
        return _lookup(self.probabilities.detach(), self._in_steps(field))

    def scaled(self, factor: Sequence[float], origin: Sequence[float]) -> DisplacementDistribution:
        """The same in another unit, see :py:meth:`SearchGrid.scaled`."""
        offset = self.offset
        if offset is not None:
            offset = offset * torch.tensor(factor).to(offset).view(3, 1, 1, 1)
        return DisplacementDistribution(self.probabilities, self.grid.scaled(factor, origin), offset)

    def float(self) -> DisplacementDistribution:
        """The same in float32, as a tensor's ``float()``."""
        return self._replace(
            probabilities=self.probabilities.float(), offset=None if self.offset is None else self.offset.float()
        )

    def _in_steps(self, field: torch.Tensor) -> torch.Tensor:
        """A field counted in steps from the first displacement along each axis."""
        first = torch.stack([axis[0] for axis in self.grid.labels])
        return (field - first.view(3, 1, 1, 1)) / self.grid.step.view(3, 1, 1, 1)

    def _expected(self, values: torch.Tensor) -> torch.Tensor:
        # bfloat16 has too few digits for the sum of thousands of displacements
        with torch.autocast(values.device.type, enabled=False):
            probabilities = self.probabilities.flatten(1, 3).flatten(2)
            expected = values.T.to(probabilities).expand(len(probabilities), -1, -1) @ probabilities
        return expected.unflatten(2, self.grid.size)


def _lookup(probabilities: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Trilinear interpolation at ``(B, 3, i, j, k)``, in steps from the first displacement, of each point's own."""
    window = probabilities.shape[1:4]
    corners = [_two_neighbours(position[:, axis], window[axis]) for axis in range(3)]
    flat = probabilities.flatten(1, 3)
    total = torch.zeros_like(position[:, 0])
    for (i, at_i), (j, at_j), (k, at_k) in itertools.product(*corners):
        label = ((i * window[1] + j) * window[2] + k).unsqueeze(1)
        total = total + at_i * at_j * at_k * flat.gather(1, label)[:, 0]
    return total


def _two_neighbours(position: torch.Tensor, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Indices and weights of the displacements below and above; weight 0 outside, all of it where there is but one."""
    if number == 1:
        return [(torch.zeros_like(position, dtype=torch.int64), torch.ones_like(position))]
    lower = position.detach().floor().clamp(-1, number - 1)
    neighbours = []
    for index in (lower, lower + 1):
        inside = (index >= 0) & (index < number)
        weight = (1 - (position - index).abs()).clamp(min=0) * inside
        neighbours.append((index.clamp(0, number - 1).long(), weight))
    return neighbours


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
