# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid

__all__ = ["downsample_ddf", "upsample_ddf"]


def upsample_ddf(
    coarse_ddf: torch.Tensor, spacing: Sequence[int], size: Sequence[int], compat: bool = False
) -> torch.Tensor:
    """Turn a field on the control grid into one on the voxel grid.

    The centre of cell *i* lies at voxel ``i * spacing + (spacing - 1) / 2``. Values between the centres are linear,
    beyond the outermost centres constant. This holds for every size, also when it is no multiple of the spacing.

    Args:
        coarse_ddf: ``(B, 3, i, j, k)`` in cells, see :py:func:`pool_to_grid`.
        spacing: voxels per cell along each axis.
        size: extent of the voxel grid.
        compat: stretch the cells over ``size`` as convexAdam does; misplaces values when ``size`` is no multiple.

    Returns:
        ``(B, 3, *size)`` in voxels.

    Raises:
        ValueError: when the cells do not cover ``size``.
    """
    if compat:
        fine = F.interpolate(coarse_ddf, size=list(size), mode="trilinear", align_corners=False)
    elif all(step == 1 for step in spacing):
        fine = coarse_ddf
    else:
        fine = F.interpolate(coarse_ddf, scale_factor=[float(step) for step in spacing], mode="trilinear")
        fine = fine[:, :, : size[0], : size[1], : size[2]]
    if tuple(fine.shape[2:]) != tuple(size):
        raise ValueError(
            f"{tuple(coarse_ddf.shape[2:])} cells of {tuple(spacing)} voxels do not cover the grid {tuple(size)}. "
            "Use compat everywhere or nowhere: it drops the last, partial cell."
        )
    return fine * _per_axis(spacing, fine)


def downsample_ddf(ddf: torch.Tensor, spacing: Sequence[int], compat: bool = False) -> torch.Tensor:
    """Field on the voxel grid to a field in cells of the control grid, by the mean over each cell.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels.
        spacing: voxels per cell along each axis.
        compat: resample linearly to ``floor(size / spacing)`` cells instead, as convexAdam does.

    Returns:
        ``(B, 3, i, j, k)`` in cells.
    """
    if compat:
        size = [extent // step for extent, step in zip(ddf.shape[2:], spacing, strict=True)]
        coarse = F.interpolate(ddf, size=size, mode="trilinear", align_corners=False)
    else:
        coarse = pool_to_grid(ddf, spacing)
    return coarse / _per_axis(spacing, coarse)


def _per_axis(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
