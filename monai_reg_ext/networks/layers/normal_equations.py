# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.layers.central_differences import central_differences
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.symmetric_matrix import symmetric_shape
from monai_reg_ext.networks.layers.upsample_ddf import share_with_grid

__all__ = ["normal_equations"]


def normal_equations(
    fixed: torch.Tensor,
    warped: torch.Tensor,
    spacing: Sequence[int],
    slopes: Sequence[torch.Tensor] | None = None,
    weight: torch.Tensor | None = None,
    coupled: bool = True,
    dense: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Gauss-Newton's equations for the displacements of control points, between which the field is linear.

    With the slopes *J* of the features and their difference :math:`f = W - F` at every voxel, a point's right side is
    the weighted mean of :math:`-\sum_c w J_c f_c` over the voxels that it reaches, see :py:func:`share_with_grid`:
    minus the gradient of the energy :math:`\frac12 \sum_c w f_c^2`, per voxel of a cell. Its matrix is that mean of
    :math:`\sum_c w J_c J_c^T`. That leaves out how neighbours work together on the voxels between them, and counts it
    for each of them instead: never less curvature than there is, so that steps do not go too far. Solved by
    :py:func:`solve_normal_equations`.

    Args:
        fixed: ``(B, F, *size)``, two or three axes.
        warped: ``(B, F, *size)``, moving features where the field so far looks for them.
        spacing: voxels per cell along each axis.
        slopes: for each axis ``(B, F, *size)``, derivatives of the features per voxel; by default
            :py:func:`central_differences` of ``warped``.
        weight: ``(B, 1, *size)``, *w*, how much each voxel counts; 1 by default.
        coupled: one symmetric matrix for each cell. ``False``: its diagonal alone, as if every component had to remove
            the whole difference by itself, which goes too far where features slope along several axes.
        dense: multiply at every voxel and average the products. ``False``: average slopes and differences over the
            cells, then multiply, which loses what is smaller than a cell, slopes that end there among it.

    Returns:
        The matrix, ``(B, D (D + 1) / 2, *cells)`` row by row of the upper triangle or ``(B, D, *cells)``, and the right
        side ``(B, D, *cells)``. Half precision is computed in float32. With gradients.

    Raises:
        ValueError: when the features do not lie on one grid.

    Source: Heinrich, "Learning registration models with differentiable Gauss-Newton optimisation", MIDL 2022, whose
    form is neither coupled nor dense.
    """
    if fixed.shape != warped.shape:
        raise ValueError(
            f"normal equations need fixed and warped features on one grid, got {tuple(fixed.shape)} and "
            f"{tuple(warped.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(fixed.dtype, warped.dtype), torch.float32)
    pairs = _pairs(fixed.dim() - 2, coupled)
    total = None
    with torch.autocast(fixed.device.type, enabled=False):
        # channel by channel, so that products never exist of all of them
        for channel in range(fixed.shape[1]):
            seen, compared = (features[:, channel : channel + 1].to(dtype) for features in (warped, fixed))
            steep = central_differences(seen) if slopes is None else [s[:, channel : channel + 1] for s in slopes]
            of_channel = _equations(steep, seen - compared, weight, spacing, pairs, dense)
            total = of_channel if total is None else total + of_channel
    return total[:, : len(pairs)], total[:, len(pairs) :]


def _pairs(axes: int, coupled: bool) -> list[tuple[int, int]]:
    """The axes whose slopes are multiplied for each entry of a matrix."""
    if not coupled:
        return [(axis, axis) for axis in range(axes)]
    return list(zip(*symmetric_shape(axes * (axes + 1) // 2), strict=True))


def _equations(
    slopes: Sequence[torch.Tensor],
    difference: torch.Tensor,
    weight: torch.Tensor | None,
    spacing: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    dense: bool,
) -> torch.Tensor:
    """Matrix and right side of one channel, one behind the other."""
    if not dense:
        means = [pool_to_grid(one if weight is None else one * weight, spacing) for one in (*slopes, difference)]
        return _equations(means[:-1], means[-1], None, [1] * len(spacing), pairs, dense=True)
    weighted = slopes if weight is None else [slope * weight for slope in slopes]
    products = [weighted[one] * slopes[other] for one, other in pairs] + [slope * -difference for slope in weighted]
    return torch.cat([share_with_grid(product, spacing) for product in products], 1)
