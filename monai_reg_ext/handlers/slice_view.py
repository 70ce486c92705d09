# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Slices of a volume as a radiologist looks at them.

The patient's right is on the left of axial and coronal slices, anterior on the left of sagittal ones; anterior or
superior is up. Slices run along the array axes, so those of an oblique scan are named after the nearest plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch

from monai_reg_ext.networks.layers.jacobian import jacobian_determinant

__all__ = ["SliceView", "radiological_views"]

# world axes (0: left to right, 1: posterior to anterior, 2: inferior to superior) normal, down and across each plane
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
POSITIVE_ENDS, NEGATIVE_ENDS = "RAS", "LPI"


@dataclass(frozen=True)
class SliceView:
    """One slice through a grid, and how it is turned for display.

    Args:
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        normal: array axis that the slice is perpendicular to.
        index: of the slice along it.
        axes: array axes that run down and across the display.
        flipped: whether they run against the array.
        spacing: voxel size down and across, mm.
        letters: directions of the patient at the top, bottom, left and right edge.
    """

    plane: str
    normal: int
    index: int
    axes: tuple[int, int]
    flipped: tuple[bool, bool]
    spacing: tuple[float, float]
    letters: tuple[str, str, str, str]

    def cut(self, volume: torch.Tensor) -> torch.Tensor:
        """The slice ``(..., down, across)`` of a volume ``(..., I, J, K)``."""
        return self.turn(volume.select(self.normal - 3, self.index))

    def turn(self, slice_: torch.Tensor) -> torch.Tensor:
        """``(..., down, across)`` from a slice ``(..., ., .)`` whose axes are in the array's order."""
        if self.axes[0] > self.axes[1]:
            slice_ = slice_.transpose(-2, -1)
        return slice_.flip([axis - 2 for axis in range(2) if self.flipped[axis]])

    def grid(self, affine: torch.Tensor, size: Sequence[int]) -> tuple[tuple[int, ...], torch.Tensor]:
        """Extent and affine (float64, as given) of the grid that holds only this slice of a grid."""
        extent = tuple(1 if axis == self.normal else length for axis, length in enumerate(size))
        start = torch.eye(4, dtype=torch.float64)
        start[self.normal, 3] = self.index
        return extent, affine @ start

    def position_mm(self, ddf: torch.Tensor) -> torch.Tensor:
        """Where the slice's voxels come from, within its plane: ``(2, down, across)``, mm from voxel 0.

        Args:
            ddf: ``(3, I, J, K)`` in voxels.
        """
        positions = []
        for axis, spacing in zip(self.axes, self.spacing, strict=True):
            shape = [-1 if other == axis else 1 for other in range(3)]
            index = torch.arange(ddf.shape[1 + axis], device=ddf.device).reshape(shape).expand(ddf.shape[1:])
            positions.append((self.cut(index) + self.cut(ddf[axis])) * spacing)
        return torch.stack(positions)

    def jacobian(self, ddf: torch.Tensor) -> torch.Tensor:
        """Jacobian determinant ``(down, across)`` of ``ddf`` ``(3, I, J, K)``, NaN along the edges.

        On the first and last slice of the volume it is that of the neighbour.
        """
        axis, thickness = 1 + self.normal, min(3, ddf.shape[1 + self.normal])
        first = min(max(self.index - 1, 0), ddf.shape[axis] - thickness)
        determinant = jacobian_determinant(ddf.narrow(axis, first, thickness)[None])[0].squeeze(self.normal)
        return self.turn(torch.nn.functional.pad(determinant, [1] * 4, value=torch.nan))


def radiological_views(affine: torch.Tensor, index: Sequence[int]) -> list[SliceView]:
    """An axial, a coronal and a sagittal slice through one voxel.

    Args:
        affine: ``(4, 4)``, voxel to mm RAS.
        index: of the voxel, along each array axis.
    """
    array_axes, signs = _orientation(affine)
    spacing = nib.affines.voxel_sizes(np.asarray(affine))
    views = []
    for plane, (normal, down, across) in PLANES.items():
        axes = array_axes[down], array_axes[across]
        views.append(
            SliceView(
                plane=plane,
                normal=array_axes[normal],
                index=index[array_axes[normal]],
                axes=axes,
                # the positive end (right, anterior, superior) comes first in every direction
                flipped=(signs[down] > 0, signs[across] > 0),
                spacing=(float(spacing[axes[0]]), float(spacing[axes[1]])),
                letters=(POSITIVE_ENDS[down], NEGATIVE_ENDS[down], POSITIVE_ENDS[across], NEGATIVE_ENDS[across]),
            )
        )
    return views


def _orientation(affine: torch.Tensor) -> tuple[list[int], list[float]]:
    """Array axis of each world axis, and whether it runs along it (1) or against it (-1)."""
    orientation = nib.io_orientation(np.asarray(affine))
    array_axes = [int(np.flatnonzero(orientation[:, 0] == world)[0]) for world in range(3)]
    return array_axes, [float(orientation[axis, 1]) for axis in array_axes]
