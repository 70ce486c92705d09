# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.warp import sample

__all__ = ["sampled_cost"]


def sampled_cost(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    places: torch.Tensor,
    displacements: torch.Tensor,
    padding: str = "border",
) -> torch.Tensor:
    r"""What it costs to go a little further from where every point has come to, for a handful of displacements.

    :math:`\text{cost}(d, k) = \sum_c (F_c(k) - M_c(p(k) + d))^2`, the moving features interpolated linearly. Nothing is
    kept for the gradient: samples are taken again.

    Args:
        fixed: ``(B, C, *size)`` features at the points.
        moving: ``(B, C, i, j, k)`` features, in whose cells places and displacements count.
        places: ``(B, 3, *size)``, where each point is.
        displacements: ``(K, 3)``, the same for all points.
        padding: what lies outside, see :py:func:`sample`.

    Returns:
        ``(B, K, *size)`` float32, or float64 with float64 features, with gradients to the features and the places.
        Memory: little more than that without gradients; on a CPU in one pass, fastest with features in
        ``torch.channels_last_3d``.

    Raises:
        ValueError: when features and places do not fit.
    """
    if fixed.shape[:2] != moving.shape[:2] or fixed.shape[2:] != places.shape[2:] or places.shape[1] != 3:
        raise ValueError(
            "sampled_cost needs as many channels on both sides and a place for each fixed cell, got shapes "
            f"{tuple(fixed.shape)}, {tuple(moving.shape)} and {tuple(places.shape)}."
        )
    dtype = torch.promote_types(fixed.dtype, torch.float32)
    sides = fixed.to(dtype), moving.to(dtype), places.to(dtype)
    twin = compiled_twin("sampled_cost", *sides) if padding == "border" else None
    if twin is not None:
        return twin.cost(*sides, displacements)

    def cost(fixed: torch.Tensor, moving: torch.Tensor, places: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        return (fixed - sample(moving, places + one, padding=padding)).square().sum(1)

    each = displacements.to(sides[2]).view(-1, 1, 3, 1, 1, 1)
    return torch.stack([checkpoint(cost, *sides, one, use_reentrant=False) for one in each], 1)
