# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms.conventions import mm_to_voxel, voxel_spacing, voxel_to_mm

__all__ = ["centre_mm", "inside_volume", "lattice_mm", "scan_extent_mm"]


def scan_extent_mm(image: MetaTensor) -> torch.Tensor:
    """Length of an image ``(C, I, J, K)`` along its axes 0, 1, 2 in mm, from outer face to outer face, ``(3,)``."""
    return voxel_spacing(image.affine) * _size(image)


def centre_mm(image: MetaTensor) -> torch.Tensor:
    """Centre of an image's volume, ``(3,)`` float64, mm RAS."""
    return voxel_to_mm((_size(image)[None] - 1) / 2, image.affine)[0]


def lattice_mm(image: MetaTensor, points_per_axis: int = 32) -> torch.Tensor:
    """Points that fill an image's volume evenly, ``(points_per_axis ** 3, 3)`` float64, mm RAS."""
    parts = (torch.arange(points_per_axis, dtype=torch.float64) + 0.5) / points_per_axis
    return voxel_to_mm(torch.cartesian_prod(parts, parts, parts) * _size(image) - 0.5, image.affine)


def inside_volume(points_mm: torch.Tensor, affine: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Which points ``(N, 3)``, mm RAS, lie in the volume that the voxels of a grid fill, ``(N,)`` bool."""
    voxel = mm_to_voxel(points_mm, affine)
    end = torch.tensor(size, dtype=torch.float64, device=voxel.device) - 0.5
    return ((voxel >= -0.5) & (voxel <= end)).all(dim=1)


def _size(image: MetaTensor) -> torch.Tensor:
    return torch.tensor(image.shape[1:], dtype=torch.float64)
