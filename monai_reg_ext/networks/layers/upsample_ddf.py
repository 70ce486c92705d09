# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_reg_ext.networks.layers.multiply_axis import multiply_axis
from monai_reg_ext.networks.layers.pool_to_grid import grid_size, pool_to_grid

__all__ = ["downsample_ddf", "regrid_ddf", "share_with_grid", "upsample_ddf"]


def upsample_ddf(
    coarse_ddf: torch.Tensor, spacing: Sequence[int], size: Sequence[int], compat: bool = False
) -> torch.Tensor:
    """Turn a field on the control grid into one on the voxel grid.

    The centre of cell *i* lies at voxel ``i * spacing + (spacing - 1) / 2``. Values between the centres are linear,
    beyond the outermost centres constant. This holds for every size, also when it is no multiple of the spacing.

    Args:
        coarse_ddf: ``(B, D, *cells)`` in cells, see :py:func:`pool_to_grid`; two or three axes.
        spacing: voxels per cell along each axis.
        size: extent of the voxel grid.
        compat: stretch the cells over ``size`` as convexAdam does; misplaces values when ``size`` is no multiple.

    Returns:
        ``(B, D, *size)`` in voxels. Memory: little more than that.

    Raises:
        ValueError: when the cells are not those of ``size``.
    """
    _check_cells(coarse_ddf, spacing, size, compat)
    coarse_ddf = coarse_ddf * _per_axis(spacing, coarse_ddf)
    in_graph = torch.is_grad_enabled() and coarse_ddf.requires_grad
    by_rows = coarse_ddf.dim() == 5 and coarse_ddf.device.type == "cpu" and not in_graph
    upsample = _upsample_by_rows if by_rows else _upsample
    return upsample(coarse_ddf, _scales(coarse_ddf, spacing, size, compat), size)


def downsample_ddf(ddf: torch.Tensor, spacing: Sequence[int], compat: bool = False) -> torch.Tensor:
    """Field on the voxel grid to a field in cells of the control grid, by the mean over each cell.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels.
        spacing: voxels per cell along each axis.
        compat: resample linearly to ``floor(size / spacing)`` cells instead, as convexAdam does.

    Returns:
        ``(B, 3, i, j, k)`` in cells.
    """
    coarse = _downsample(ddf, spacing, compat)
    return coarse / _per_axis(spacing, coarse)


def share_with_grid(values: torch.Tensor, spacing: Sequence[int]) -> torch.Tensor:
    """Sums over the voxels that each control point reaches, weighted as :py:func:`upsample_ddf` weighs it there.

    The transpose of that interpolation, divided by the voxels of a full cell: turns gradients for a field in voxels
    into those for its control points. What all points get together is the sum over all voxels.

    Args:
        values: ``(B, C, *size)``, two or three axes, floating dtype.
        spacing: voxels per cell along each axis.

    Returns:
        ``(B, C, *grid_size)``, see :py:func:`pool_to_grid`.
    """
    # the longest rows first: each product leaves less for the next
    for dim, step in reversed(list(enumerate(spacing, start=2))):
        if step == 1:
            continue
        matrix = _interpolation(values, step, values.shape[dim], -(-values.shape[dim] // step), compat=False)
        values = multiply_axis(values, dim, matrix.T / step)
    return values


def regrid_ddf(
    coarse_ddf: torch.Tensor,
    spacing: Sequence[int],
    new_spacing: Sequence[int],
    size: Sequence[int],
    compat: bool = False,
) -> torch.Tensor:
    """Move a field from one control grid to another: upsampled and downsampled, without the field in between.

    Both steps are linear along one axis after the other, so that together they are one small matrix per axis.

    Args:
        coarse_ddf: ``(B, 3, i, j, k)`` in cells.
        spacing: voxels per cell along each axis.
        new_spacing: voxels per new cell along each axis.
        size: extent of the voxel grid that both grids divide.
        compat: see :py:func:`upsample_ddf` and :py:func:`downsample_ddf`.

    Returns:
        ``(B, 3, *grid_size)`` in new cells; ``downsample_ddf(upsample_ddf(coarse_ddf))`` up to rounding.

    Raises:
        ValueError: when the cells are not those of ``size``.
    """
    _check_cells(coarse_ddf, spacing, size, compat)
    # autocast and TF32 leave float64 alone, and coarse fields are small
    field = coarse_ddf.double()
    field = field * _per_axis(spacing, field) / _per_axis(new_spacing, field)
    for step, new_step, extent in zip(spacing, new_spacing, size, strict=True):
        # the contracted axis comes back as the last one: after three turns all are in order
        field = torch.tensordot(field, _regrid_matrix(field, step, new_step, extent, compat), dims=([2], [1]))
    return field.to(coarse_ddf.dtype)


def _regrid_matrix(field: torch.Tensor, step: int, new_step: int, extent: int, compat: bool) -> torch.Tensor:
    """``(new cells, cells)`` for axis 2 of the field: what becomes of every unit vector."""
    fine = _interpolation(field, step, extent, field.shape[2], compat).T[None, :, :, None, None]
    return _downsample(fine, (new_step, 1, 1), compat)[0, :, :, 0, 0].T


def _interpolation(like: torch.Tensor, step: int, extent: int, cells: int, compat: bool) -> torch.Tensor:
    """``(extent, cells)``: what becomes of every unit vector along one axis."""
    units = torch.eye(cells, device=like.device, dtype=like.dtype).view(1, cells, cells, 1, 1)
    size = (extent, 1, 1)
    return _upsample(units, _scales(units, (step, 1, 1), size, compat), size)[0, :, :, 0, 0].T


def _check_cells(coarse_ddf: torch.Tensor, spacing: Sequence[int], size: Sequence[int], compat: bool) -> None:
    cells = grid_size(size, spacing, compat)
    if tuple(coarse_ddf.shape[2:]) != cells:
        raise ValueError(
            f"{tuple(coarse_ddf.shape[2:])} cells of {tuple(spacing)} voxels do not cover the grid {tuple(size)}; with "
            f"compat={compat} it has {cells}. A field needs a value for every cell that pool_to_grid makes."
        )


def _scales(coarse: torch.Tensor, spacing: Sequence[int], size: Sequence[int], compat: bool) -> list[float]:
    """Voxels per cell as the interpolation takes them; ``compat`` stretches."""
    if compat:
        return [extent / cells for extent, cells in zip(size, coarse.shape[2:], strict=True)]
    return [float(step) for step in spacing]


def _upsample(coarse: torch.Tensor, scales: Sequence[float], size: Sequence[int]) -> torch.Tensor:
    # F.interpolate takes either the scales or the size; a partial last cell needs both
    upsample = torch.ops.aten.upsample_bilinear2d if coarse.dim() == 4 else torch.ops.aten.upsample_trilinear3d
    return upsample(coarse, list(size), False, *scales)


def _upsample_by_rows(coarse: torch.Tensor, scales: Sequence[float], size: Sequence[int]) -> torch.Tensor:
    """The same at the speed of the memory on a CPU: what is interpolated over axes 1 and 2 stays in the cache."""
    fine = coarse.new_empty((*coarse.shape[:2], *size))
    last = coarse.shape[2] - 1
    for channel in range(coarse.shape[1]):
        cells = torch.ops.aten.upsample_bilinear2d(coarse[:, channel], list(size[1:]), False, *scales[1:])
        for row in range(size[0]):
            position = min(max((row + 0.5) / scales[0] - 0.5, 0), last)
            lower = int(position)
            upper = min(lower + 1, last)
            torch.lerp(cells[:, lower], cells[:, upper], position - lower, out=fine[:, channel, row])
    return fine


def _downsample(fine: torch.Tensor, spacing: Sequence[int], compat: bool) -> torch.Tensor:
    if compat:
        return F.interpolate(fine, size=list(grid_size(fine.shape[2:], spacing, compat)), mode="trilinear")
    return pool_to_grid(fine, spacing)


def _per_axis(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, *[1] * (like.dim() - 2))
