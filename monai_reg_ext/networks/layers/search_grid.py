# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

__all__ = ["SearchGrid", "search_grid"]


class SearchGrid(NamedTuple):
    """Control points and the displacements that are tried at each of them, both given along every axis by itself.

    - ``points``: three tensors ``(n,)``, positions of the control points.
    - ``labels``: three tensors ``(l,)``, displacements in ascending order and equal steps.

    All count in voxels, or cells, of the volume that is searched, along array axes 0, 1, 2. A point *k* looks at
    ``k + d`` for all ``l_0 l_1 l_2`` displacements *d*; beyond a face it sees what is at the face.
    """

    points: tuple[torch.Tensor, ...]
    labels: tuple[torch.Tensor, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Control points along each axis."""
        return tuple(len(axis) for axis in self.points)

    @property
    def window(self) -> tuple[int, ...]:
        """Displacements along each axis."""
        return tuple(len(axis) for axis in self.labels)

    @property
    def step(self) -> torch.Tensor:
        """From one displacement to the next along each axis, ``(3,)``; 1 where there is but one."""
        return torch.stack([axis[1] - axis[0] if len(axis) > 1 else torch.ones_like(axis[0]) for axis in self.labels])

    @property
    def displacements(self) -> torch.Tensor:
        """All displacements ``(l_0 l_1 l_2, 3)``, that along axis 2 changes fastest."""
        return torch.cartesian_prod(*self.labels)

    def targets(self, axis: int) -> torch.Tensor:
        """Where all points look along an axis, ``(l, n)``."""
        return self.labels[axis][:, None] + self.points[axis]

    def scaled(self, factor: Sequence[float], origin: Sequence[float] = (0.0, 0.0, 0.0)) -> SearchGrid:
        """The same places in another volume: positions ``factor * x + origin``, displacements ``factor * d``."""
        return SearchGrid(
            tuple(scale * axis + start for axis, scale, start in zip(self.points, factor, origin, strict=True)),
            tuple(scale * axis for axis, scale in zip(self.labels, factor, strict=True)),
        )


def search_grid(
    extent: Sequence[int],
    size: Sequence[int],
    window: Sequence[int],
    reach: Sequence[float],
    like: torch.Tensor,
    compat: bool = False,
) -> SearchGrid:
    """Control points spread evenly over a volume, and a window of displacements around each.

    Args:
        extent: cells of the volume along each axis.
        size: control points along each axis. They divide the volume into boxes of equal size and lie in their centres.
        window: displacements along each axis; a single one is 0.
        reach: largest displacement along each axis in cells.
        like: tensor whose device the grid shares, and its dtype where that is float64; else float32.
        compat: the outermost points lie in the centres of the outermost cells instead.

    Raises:
        ValueError: when there are no points or displacements, or the window is larger than the volume.
    """
    if min(*size, *window) < 1:
        raise ValueError(f"A search needs points and displacements along every axis, got {size} and {window}.")
    if any(not 0 <= far <= cells for far, cells in zip(reach, extent, strict=True)):
        raise ValueError(
            f"A search window that reaches {tuple(round(float(far), 2) for far in reach)} cells to each side is larger "
            f"than the volume of {tuple(extent)} cells. Choose a smaller reach."
        )
    dtype = torch.promote_types(like.dtype, torch.float32)

    def spread(first: float, last: float, number: int) -> torch.Tensor:
        middle = (first + last) / 2
        ends = (first, last) if number > 1 else (middle, middle)
        return torch.linspace(*ends, number, dtype=torch.float64).to(like.device, dtype)

    points = []
    for cells, number in zip(extent, size, strict=True):
        inset = 0.0 if compat else (cells / number - 1) / 2
        points.append(spread(inset, cells - 1 - inset, number))
    labels = [spread(-far, far, number) for far, number in zip(reach, window, strict=True)]
    return SearchGrid(tuple(points), tuple(labels))
