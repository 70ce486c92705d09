# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["linear_weights", "sample_axes"]


def sample_axes(volume: torch.Tensor, positions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values on a grid whose axes are those of the volume: linear interpolation along one axis after the other.

    The same as :py:func:`monai_reg_ext.networks.layers.sample` with border padding at the positions' mesh, at the price
    of three lines instead of eight corners for every value.

    Args:
        volume: ``(B, C, I, J, K)``; half precision is interpolated in float32.
        positions: along each axis ``(i,)``, ``(j,)`` and ``(k,)`` in voxels of the volume, in any order. Outside the
            border repeats.

    Returns:
        ``(B, C, i, j, k)``, float32 or float64, with gradients to the volume.
    """
    volume = volume.to(torch.promote_types(volume.dtype, torch.float32))
    for dim, position in enumerate(positions, start=2):
        volume = _sample_axis(volume, dim, position)
    return volume


def linear_weights(position: torch.Tensor, extent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Between which voxels positions lie: the lower one's index (int64), and how far above it, 0 to 1.

    The upper one is the next, or the same one where the extent is a single voxel.
    """
    position = position.clamp(0, extent - 1)
    lower = position.floor().clamp(max=max(extent - 2, 0))
    return lower.long(), position - lower


def _sample_axis(volume: torch.Tensor, dim: int, position: torch.Tensor) -> torch.Tensor:
    extent = volume.shape[dim]
    lower, weight = linear_weights(position.to(volume), extent)
    upper = (lower + 1).clamp(max=extent - 1)
    weight = weight.view(-1, *[1] * (volume.dim() - 1 - dim))
    return torch.lerp(volume.index_select(dim, lower), volume.index_select(dim, upper), weight)
