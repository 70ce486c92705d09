# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from nibabel.orientations import io_orientation

from monai_reg_ext.data.lung_motion import EXTENT, LungMotion
from monai_reg_ext.data.pairing import file_stem
from monai_reg_ext.transforms.check_pair import check_same_grid
from monai_reg_ext.transforms.read_volume import read_volume

__all__ = ["BreathingCarrier"]

AIR_HU = -1024.0


class BreathingCarrier:
    """A real CT whose lungs are moved: the scan, its lungs, and the coordinates that motions count in.

    Args:
        image: CT in Hounsfield units, a file or ``(1, I, J, K)``; padding below -1024 counts as air.
        mask: its lungs, on the same grid.
        lung_labels: values of ``mask`` that are lung; by default all but 0.
        lung_box: first and last voxel of the whole lungs along each array axis, ``((i, i), (j, j), (k, k))``, where
            they reach beyond the image; by default that of the mask, without its outermost hundredths.

    Raises:
        FileNotFoundError, ValueError: when a file cannot be read, the mask is on another grid, or holds no lung.
    """

    def __init__(
        self,
        image: str | Path | MetaTensor,
        mask: str | Path | MetaTensor,
        lung_labels: Sequence[int] | None = None,
        lung_box: Sequence[Sequence[float]] | None = None,
    ) -> None:
        scan, lungs = _loaded(image, "image"), _loaded(mask, "mask")
        check_same_grid("mask", lungs, scan, "image")
        self.name = file_stem(scan.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "scan"))
        self.affine = scan.affine.double()
        self.image = scan.as_tensor().float().clamp(min=AIR_HU)
        values = lungs.as_tensor()
        inside = values != 0 if lung_labels is None else torch.isin(values, torch.as_tensor(list(lung_labels)))
        if not inside.any():
            raise ValueError(f"{self.name}: the mask holds no lung (labels {lung_labels}). Give the lungs' labels.")
        self.mask = inside
        box = _box(inside[0]) if lung_box is None else torch.as_tensor(lung_box, dtype=torch.float64)
        self.centre, self.half = box.mean(1), (box[:, 1] - box[:, 0]) / 2
        orientation = io_orientation(np.asarray(self.affine))
        # for each array axis which of right, anterior, superior it is nearest to, and whether it leads that way
        self.world_axis = [int(axis) for axis in orientation[:, 0]]
        self.sign = torch.from_numpy(orientation[:, 1].copy())

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.image.shape[1:])

    def frame(self, motion: LungMotion) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre and half extent in voxels, ``(3,)`` each, of the box that a motion takes to that of the lungs."""
        lower, upper = (end[self.world_axis] for end in motion.ends())
        half = 2 * self.half / (upper - lower)
        return self.centre - half * self.sign * (lower + upper) / 2, half

    def ddf(self, motion: LungMotion) -> torch.Tensor:
        """Displacement ``(3, I, J, K)`` float64 in voxels of a motion, from its rest to the scan as it is."""
        centre, half = self.frame(motion)
        along: list[torch.Tensor] = [torch.empty(0)] * 3
        for axis, world in enumerate(self.world_axis):
            voxels = torch.arange(self.size[axis], dtype=torch.float64)
            along[world] = self.sign[axis] * (voxels - centre[axis]) / half[axis]
        field = motion.on_grid(along).permute(0, *[1 + world for world in self.world_axis])
        return field[self.world_axis] * (self.sign * half).view(3, 1, 1, 1)

    def moved(self, points_voxel: torch.Tensor, motion: LungMotion) -> torch.Tensor:
        """Where in the scan, ``(N, 3)`` float64 in voxels, points of the motion's rest come to lie; exact."""
        centre, half = self.frame(motion)
        relative = self.sign * (points_voxel - centre) / half
        position = torch.empty_like(relative)
        position[:, self.world_axis] = relative
        return points_voxel + motion.at(position)[:, self.world_axis] * self.sign * half


def _loaded(volume: str | Path | MetaTensor, where: str) -> MetaTensor:
    return volume if isinstance(volume, MetaTensor) else read_volume(Path(volume).expanduser(), f"{where} ({volume})")


def _box(inside: torch.Tensor) -> torch.Tensor:
    """Where the lungs begin and end along each axis, ``(3, 2)``, but for the outermost hundredths of them."""
    places = inside.nonzero().numpy()
    return torch.from_numpy(np.quantile(places, EXTENT, axis=0).T)
