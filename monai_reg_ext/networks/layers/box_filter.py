# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["box_filter"]


def box_filter(volume: torch.Tensor, widths: Sequence[int] = (3,), compat: bool = False) -> torch.Tensor:
    """Cascade of cubic moving averages over the spatial axes, one separable pass per width.

    Three passes of width 3 are close to a cubic B-spline. At the border the default averages the voxels that exist, so
    that a constant stays constant; ``compat=True`` counts the outside as zeros, as convexAdam does, which shrinks
    values to 2/3 at a face and 8/27 at a corner.

    Args:
        volume: ``(B, C, *size)``; floating dtype.
        widths: odd extents in voxels, applied one after the other.
        compat: zero padding with a fixed divisor.

    Returns:
        Tensor of the same shape and dtype. Memory: two volumes.

    Raises:
        ValueError: when a width is even or below 1.
    """
    for width in widths:
        if width < 1 or width % 2 == 0:
            raise ValueError(f"box widths must be odd and positive, got {tuple(widths)}.")
        if width > 1:
            for dim in range(2, volume.dim()):
                volume = _moving_average(volume, dim, width // 2, compat)
    return volume


def _moving_average(volume: torch.Tensor, dim: int, radius: int, compat: bool) -> torch.Tensor:
    size = volume.shape[dim]
    total = volume.clone()
    for shift in range(1, min(radius, size - 1) + 1):
        total.narrow(dim, shift, size - shift).add_(volume.narrow(dim, 0, size - shift))
        total.narrow(dim, 0, size - shift).add_(volume.narrow(dim, shift, size - shift))
    if compat:
        return total.div_(2 * radius + 1)
    position = torch.arange(size, device=volume.device)
    inside = (position + radius).clamp(max=size - 1) - (position - radius).clamp(min=0) + 1
    return total.mul_(inside.to(volume.dtype).reciprocal().view([-1] + [1] * (volume.dim() - 1 - dim)))
