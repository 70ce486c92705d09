# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_reg_ext.networks.layers.box_filter import box_filter

__all__ = ["displacement_labels", "ssd_cost_volume"]


def displacement_labels(half_width: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """All whole displacements of a search window.

    Args:
        half_width: largest displacement along each axis, in cells.
        like: tensor whose device and dtype the labels share.

    Returns:
        ``(L, 3)`` in cells, ``L = prod(2 * half_width + 1)``; the displacement along axis 0 changes fastest.
    """
    steps = [torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype) for reach in reversed(half_width)]
    return torch.cartesian_prod(*steps).flip(1)


def ssd_cost_volume(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    half_width: Sequence[int],
    smooth_widths: Sequence[int] = (3, 3),
    compat: bool = False,
) -> torch.Tensor:
    """Smoothed sum of squared feature differences for every displacement of a search window.

    ``cost[l](x) = box( sum_c (fixed_c(x) - moving_c(x + d_l))^2 )`` with ``moving = 0`` outside, so that to leave the
    field of view costs the whole feature energy.

    Args:
        fixed: ``(B, C, i, j, k)`` features.
        moving: ``(B, C, i, j, k)`` features on the same control grid.
        half_width: largest displacement along each axis, in cells.
        smooth_widths: box filters over space, see :py:func:`box_filter`.
        compat: the reference's zero-padded box filters.

    Returns:
        ``(B, L, i, j, k)`` in the features' dtype, labels ordered as in :py:func:`displacement_labels`.

    Source: Siebert, Hansen & Heinrich, "Fast 3D registration with accurate optimisation and little learning for
    Learn2Reg 2021" (ConvexAdam), correlation layer.
    """
    size = fixed.shape[2:]
    padded = F.pad(moving, [reach for reach in reversed(half_width) for _ in range(2)])
    starts = displacement_labels(half_width, torch.zeros(0, dtype=torch.int64)) + torch.tensor(list(half_width))
    cost = fixed.new_empty((fixed.shape[0], len(starts), *size))
    for label, (i, j, k) in enumerate(starts.tolist()):
        shifted = padded[:, :, i : i + size[0], j : j + size[1], k : k + size[2]]
        cost[:, label] = (fixed - shifted).square_().sum(1)
    return box_filter(cost, smooth_widths, compat)
