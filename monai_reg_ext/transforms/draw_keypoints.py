# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform

from monai_reg_ext.transforms.conventions import mm_to_voxel
from monai_reg_ext.transforms.scan_extent import inside_volume
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = ["DrawKeypointsD", "DrawKeypointsDict", "DrawKeypointsd"]

LEAST = 4  # points that a smooth field goes through


class DrawKeypointsd(Randomizable, Transform):
    """Corresponding points of a pair as a network learns from them: some, drawn anew each time, in voxels.

    The item's ``fixed_points`` and ``moving_points``, ``(N, 3)`` in mm RAS, row by row the same places, each in the
    space of its scan, become ``(2, number, 3)`` float32, moving, then fixed, in voxels of the images that the network
    is given. These know by their affines where they lie, so this transform stands last: what crops, flips or turns one
    of them moves its points too. Points that the fixed image does not show, or that are not finite in either scan, are
    left out. Rows are NaN where there are fewer than ``number``, so that pairs fit into a batch.

    For :py:func:`monai_reg_ext.engines.prepare_keypoint_batch` and :py:class:`monai_reg_ext.losses.KeypointLoss`.

    Args:
        number: rows of the result.
        fixed_key: the fixed image as the network is given it, with its affine, which the result carries too.
        moving_key: the moving one, on the same grid after the initial alignment, as :py:class:`ResampleToFixedd` makes
            it.
        initial_key: transform from fixed to moving space, as :py:class:`ResampleToFixedd` writes it; none where there
            is no such key.
        output_key: where the result goes.

    Raises:
        TypeError: when an image has no affine.
        ValueError: for a number below four, points that do not correspond, or when the fixed image shows fewer than
            four of them.
    """

    def __init__(
        self,
        number: int = 1024,
        fixed_key: str = "fixed_working",
        moving_key: str = "moving_working",
        initial_key: str = "initial",
        output_key: str = "keypoints",
    ) -> None:
        if number < LEAST:
            raise ValueError(f"number, the keypoints to learn from, must be at least {LEAST}, got {number}.")
        self.number = number
        self.fixed_key = fixed_key
        self.moving_key = moving_key
        self.initial_key = initial_key
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        fixed, moving = (_with_affine(key, data[key]) for key in (self.fixed_key, self.moving_key))
        fixed_mm, moving_mm = _points(data)
        rows = self._drawn(_usable(fixed_mm, moving_mm, fixed))
        aligned_mm = _before(data.get(self.initial_key), moving_mm[rows])
        keypoints = torch.full((2, self.number, 3), torch.nan)
        keypoints[0, : len(rows)] = mm_to_voxel(aligned_mm, moving.affine).float()
        keypoints[1, : len(rows)] = mm_to_voxel(fixed_mm[rows], fixed.affine).float()
        return {**data, self.output_key: MetaTensor(keypoints, affine=fixed.affine)}

    def _drawn(self, rows: torch.Tensor) -> torch.Tensor:
        if len(rows) <= self.number:
            return rows
        return rows[torch.from_numpy(self.R.choice(len(rows), self.number, replace=False))]


def _with_affine(key: str, image: torch.Tensor) -> MetaTensor:
    if not isinstance(image, MetaTensor):
        raise TypeError(f"{key}: points in mm need a MetaTensor with its affine, got {type(image).__name__}.")
    return image


def _points(data: Mapping[Hashable, Any]) -> list[torch.Tensor]:
    sides = [torch.as_tensor(data[f"{side}_points"]).as_subclass(torch.Tensor) for side in ("fixed", "moving")]
    shapes = [tuple(points.shape) for points in sides]
    if shapes[0] != shapes[1] or shapes[0][1:] != (3,):
        raise ValueError(
            "row i of fixed_points and of moving_points must be one place, (N, 3) each in mm RAS, got "
            f"{shapes[0]} and {shapes[1]}."
        )
    return [points.double().cpu() for points in sides]


def _usable(fixed_mm: torch.Tensor, moving_mm: torch.Tensor, fixed: MetaTensor) -> torch.Tensor:
    """Rows ``(M,)`` int64."""
    shown = inside_volume(fixed_mm, fixed.affine, tuple(fixed.shape[1:])) & moving_mm.isfinite().all(1)
    if shown.sum() < LEAST:
        raise ValueError(
            f"the fixed image shows {int(shown.sum())} of {len(shown)} corresponding points, at least {LEAST} are "
            "needed. Is their space right (mm RAS, not voxel or lps)? Else crop less, or leave this pair out."
        )
    return shown.nonzero()[:, 0]


def _before(initial: torch.Tensor | None, moving_mm: torch.Tensor) -> torch.Tensor:
    """Where points of moving space lie when it is aligned with fixed space, mm."""
    if initial is None:
        return moving_mm
    if initial.ndim == 4:
        return SpatialDisplacement.from_metatensor(initial).warp_points_back(moving_mm)
    return mm_to_voxel(moving_mm, initial)


DrawKeypointsD = DrawKeypointsDict = DrawKeypointsd
