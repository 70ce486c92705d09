# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.transforms.utils import distance_transform_edt

__all__ = ["signed_distance"]


def signed_distance(
    inside: torch.Tensor, power: float = 0.5, scale: float = 20.0, voxel_size: Sequence[float] | None = None
) -> torch.Tensor:
    """Distance to a region's border, positive inside and negative outside, compressed by a power.

    A voxel inside has ``scale * d ** power`` with *d* the distance to the nearest voxel outside, one outside minus that
    of the nearest one inside: between neighbours across the border it jumps by twice ``scale``. Every map keeps that
    sign when it is warped and interpolated.

    Args:
        inside: ``(B, C, *size)``, two or three axes, not 0 inside; every channel is a region of its own.
        power: 0.5 as the reference's root, steep beside the border and flat far away; 1 keeps distances.
        scale: factor; weights of regularisation go with its square.
        voxel_size: edges of a voxel; distances count in their unit. By default they count voxels.

    Returns:
        ``(B, C, *size)`` float32 on the same device. 0 everywhere for a channel without inside or without outside: it
        has no border, and says nothing of where it was.

    Raises:
        ValueError: for a power or scale that is not above 0.

    Source: Heinrich, "Learning registration models with differentiable Gauss-Newton optimisation", MIDL 2022.
    """
    if not (power > 0 and scale > 0):
        raise ValueError(f"power and scale must be > 0, got power={power}, scale={scale}.")
    size = inside.shape[2:]
    regions = inside.flatten(0, 1) != 0
    maps = torch.zeros(regions.shape, dtype=torch.float32, device=inside.device)
    has_border = regions.flatten(1).any(1) & ~regions.flatten(1).all(1)
    for number in has_border.nonzero()[:, 0].tolist():
        region = regions[number : number + 1]
        within, beyond = (_distance(part, voxel_size).pow_(power) for part in (region, ~region))
        maps[number] = scale * (within - beyond)[0]
    return maps.view(*inside.shape[:2], *size)


def _distance(region: torch.Tensor, voxel_size: Sequence[float] | None) -> torch.Tensor:
    """Distance ``(1, *size)`` of every voxel of a region to the nearest one outside of it."""
    sampling = None if voxel_size is None else [float(edge) for edge in voxel_size]
    return distance_transform_edt(region, sampling).float()
