# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

__all__ = ["grid_size", "pool_slabs", "pool_to_grid", "slabs"]

# Values of a slab: on the CPU so few that they stay in the cache, on a GPU so many that it has work.
_CPU_SLAB, _GPU_SLAB = 6 * 2**20, 2**26


def grid_size(size: Sequence[int], spacing: Sequence[int], compat: bool = False) -> tuple[int, ...]:
    """Cells of a control grid along each axis: ``ceil(size / spacing)``, or ``floor`` with ``compat``.

    Args:
        size: extent of the voxel grid.
        spacing: voxels per cell along each axis.
        compat: count full cells only, see :py:func:`pool_to_grid`.

    Raises:
        ValueError: when ``compat`` leaves no cell.
    """
    cells = tuple(extent // step if compat else -(-extent // step) for extent, step in zip(size, spacing, strict=True))
    if 0 in cells:
        raise ValueError(
            f"{tuple(size)} voxels hold no full cell of {tuple(spacing)} voxels, and compat drops partial ones. Choose "
            "a smaller spacing."
        )
    return cells


def pool_to_grid(features: torch.Tensor, spacing: Sequence[int], compat: bool = False) -> torch.Tensor:
    """Average full-resolution features over the cells of a control grid.

    Args:
        features: ``(B, C, I, J, K)``.
        spacing: voxels per cell along each axis.
        compat: drop the voxels behind the last full cell, as convexAdam does. By default they form a last, partial
            cell, so that no voxel is lost and cell *i* always begins at voxel ``i * spacing``.

    Returns:
        ``(B, C, *grid_size)``, see :py:func:`grid_size`; the features themselves where a cell is a voxel. Sums are
        float32 when the features are half.

    Raises:
        ValueError: when ``compat`` leaves no cell.
    """
    total, sizes = features, features.shape[2:]
    for dim, (step, cells) in enumerate(zip(spacing, grid_size(sizes, spacing, compat), strict=True), start=2):
        if step > 1:
            total = _sum_of_cells(total, dim, step, min(sizes[dim - 2], step * cells))
    if total is features:
        return features
    return total.div_(_voxels_per_cell(total, spacing, sizes)).to(features.dtype)


def _voxels_per_cell(cells: torch.Tensor, spacing: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    voxels = cells.new_ones(())
    for number, step, extent in zip(cells.shape[2:], spacing, size, strict=True):
        along_axis = cells.new_full((number,), step)
        along_axis[-1] = min(step, extent - (number - 1) * step)
        voxels = voxels.unsqueeze(-1) * along_axis
    return voxels


def _sum_of_cells(volume: torch.Tensor, dim: int, step: int, extent: int) -> torch.Tensor:
    def nth_voxels(n: int) -> torch.Tensor:
        return volume[(slice(None),) * dim + (slice(n, extent, step),)]

    total = nth_voxels(0).to(torch.promote_types(volume.dtype, torch.float32), copy=True)
    for n in range(1, min(step, extent)):
        voxels = nth_voxels(n)
        total.narrow(dim, 0, voxels.shape[dim]).add_(voxels)
    return total


def slabs(image: torch.Tensor, channels: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Cut the first spatial axis into slabs whose features are a small part of the memory.

    Args:
        image: ``(B, C, I, J, K)``.
        channels: number of features.
        multiple: slabs but the last have a multiple of so many rows.

    Returns:
        ``(begin, end)`` of every slab, rows of axis 0.
    """
    values = channels * image[:, 0, 0].numel() * multiple
    thickness = multiple * max(1, (_GPU_SLAB if image.is_cuda else _CPU_SLAB) // max(1, values))
    extent = image.shape[2]
    return [(begin, min(begin + thickness, extent)) for begin in range(0, extent, thickness)]


def pool_slabs(
    features: Callable[[int, int], torch.Tensor],
    image: torch.Tensor,
    channels: int,
    spacings: Sequence[Sequence[int]],
    compat: bool = False,
) -> list[torch.Tensor]:
    """:py:func:`pool_to_grid` of features that never exist at once, for several grids in one pass.

    Args:
        features: rows ``begin`` to ``end`` of axis 0 of the features, ``(B, channels, end - begin, J, K)`` float32.
        image: ``(B, C, I, J, K)``, whose size, batch and device the features share.
        channels: number of features.
        spacings: one or several grids, voxels per cell along each axis.
        compat: see :py:func:`pool_to_grid`.

    Returns:
        For every grid ``(B, channels, *grid_size)`` float32.
    """
    pooled = [
        image.new_empty((len(image), channels, *grid_size(image.shape[2:], spacing, compat)), dtype=torch.float32)
        for spacing in spacings
    ]
    for begin, end in slabs(image, channels, math.lcm(*(spacing[0] for spacing in spacings))):
        slab = features(begin, end)
        for grid, spacing in zip(pooled, spacings, strict=True):
            # slicing ends where the grid ends: compat may leave this slab no cell
            cells = grid[:, :, begin // spacing[0] : -(-end // spacing[0])]
            if cells.numel() > 0:
                cells.copy_(pool_to_grid(slab, spacing, compat))
    return pooled
