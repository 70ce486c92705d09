# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from monai_reg_ext.networks.layers.diffusion import diffusion
from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution
from monai_reg_ext.networks.layers.search_grid import SearchGrid
from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS

__all__ = ["PlanarDistribution"]


class PlanarDistribution(NamedTuple):
    """How probable displacements of three orthogonal planes are: it is asked as a :py:class:`DisplacementDistribution`.

    - ``planes``: three of those, of which number *a* has a single displacement along axis *a*. Each has its own
      probabilities; every component of a displacement is known to two of them.
    """

    planes: tuple[DisplacementDistribution, ...]

    @property
    def grid(self) -> SearchGrid:
        """Control points, and the displacements of all planes along each axis."""
        first, second, _ = (plane.grid for plane in self.planes)
        return SearchGrid(first.points, (second.labels[0], *first.labels[1:]))

    def mean(self) -> torch.Tensor:
        """``(B, 3, i, j, k)`` expected displacement, the mean of the two planes that know a component."""
        means = torch.stack([plane.mean() for plane in self.planes])
        return torch.stack([means[self._knowing(axis), :, axis].mean(0) for axis in range(3)], 1)

    def covariance(self) -> torch.Tensor:
        """``(B, 6, i, j, k)`` covariance, entries 00, 01, 02, 11, 12, 22, of the planes that know both components."""
        covariances = torch.stack([plane.covariance() for plane in self.planes])
        entries = [covariances[self._knowing(*pair), :, n] for n, pair in enumerate(zip(ROWS, COLUMNS, strict=True))]
        return torch.stack([entry.mean(0) for entry in entries], 1)

    def seen(self, values: torch.Tensor) -> torch.Tensor:
        """``(B, C, i, j, k)`` what the points expect to see of ``values``, the mean of the planes."""
        return sum(plane.seen(values) for plane in self.planes) / 3

    def here(self, values: torch.Tensor) -> torch.Tensor:
        """``(B, C, i, j, k)`` values at the points themselves."""
        return self.planes[0].here(values)

    def roughness(self) -> torch.Tensor:
        """See :py:meth:`DisplacementDistribution.roughness`."""
        return diffusion(self.mean() / self.grid.step.view(3, 1, 1, 1)).mean()

    def at(self, field: torch.Tensor) -> torch.Tensor:
        """``(B, i, j, k)`` probabilities of given displacements, the mean of the planes."""
        return sum(plane.at(field) for plane in self.planes) / 3

    def scaled(self, factor: Sequence[float], origin: Sequence[float]) -> PlanarDistribution:
        """The same in another unit, see :py:meth:`SearchGrid.scaled`."""
        return PlanarDistribution(tuple(plane.scaled(factor, origin) for plane in self.planes))

    def float(self) -> PlanarDistribution:
        """The same in float32, as a tensor's ``float()``."""
        return PlanarDistribution(tuple(plane.float() for plane in self.planes))

    @staticmethod
    def _knowing(*axes: int) -> list[int]:
        return [plane for plane in range(3) if plane not in axes]
