# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.central_differences import central_differences
from monai_reg_ext.networks.layers.normal_equations import normal_equations
from monai_reg_ext.networks.layers.pool_to_grid import grid_size
from monai_reg_ext.networks.layers.upsample_ddf import share_with_grid, upsample_ddf
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["check_slopes", "field_normal_equations", "weight_at_field"]

_SLOPES = ("warped", "moving", "mean")


def field_normal_equations(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    coarse_ddf: torch.Tensor,
    spacing: Sequence[int],
    slopes: str = "warped",
    fixed_weight: torch.Tensor | None = None,
    moving_weight: torch.Tensor | None = None,
    coupled: bool = True,
    dense: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Newton's equations at a field: :py:func:`normal_equations` of the moving features warped by it.

    Dense ones of warped slopes on three axes are compiled for the CPU, in one pass that holds neither the field nor
    warped features nor products of all voxels.

    Args:
        fixed: ``(B, F, *size)``, two or three axes.
        moving: ``(B, F, *size)``; may be larger or smaller, see :py:func:`warp`.
        coarse_ddf: ``(B, D, *cells)`` in cells of the control grid, see :py:func:`upsample_ddf`.
        spacing: voxels per cell along each axis.
        slopes: of which features: ``"warped"``; ``"moving"``, derived before they are warped; ``"mean"`` of fixed and
            warped ones.
        fixed_weight: ``(B, 1, *size)``, how much each voxel counts; 1 by default.
        moving_weight: ``(B, 1, *size)``, the same of the moving features, on their grid; both are multiplied.
        coupled: see :py:func:`normal_equations`.
        dense: see :py:func:`normal_equations`.

    Returns:
        Matrix and right side, see :py:func:`normal_equations`.

    Raises:
        ValueError: for unknown slopes, features with other channels or a field with other cells than they need.
    """
    check_slopes(slopes)
    given = [fixed, moving, coarse_ddf, *(weight for weight in (fixed_weight, moving_weight) if weight is not None)]
    is_compiled = dense and slopes == "warped" and _fit(fixed, moving, coarse_ddf, spacing, fixed_weight, moving_weight)
    twin = compiled_twin("field_normal_equations", *given) if is_compiled else None
    if twin is None:
        ddf = upsample_ddf(coarse_ddf, spacing, fixed.shape[2:])
        warped, weight = warp(moving, ddf), weight_at_field(ddf, fixed_weight, moving_weight)
        steep = _slopes(fixed, moving, warped, ddf, slopes)
        return normal_equations(fixed, warped, spacing, steep, weight, coupled, dense)
    rows = upsample_ddf(coarse_ddf, (1, 1, spacing[2]), (*coarse_ddf.shape[2:4], fixed.shape[4]))
    rows *= rows.new_tensor([*spacing[:2], 1]).view(3, 1, 1, 1)
    sums = twin.pooled_products(fixed, moving, rows, spacing[:2], fixed_weight, moving_weight, coupled)
    return share_with_grid(sums, (1, 1, spacing[2])).tensor_split((-3,), 1)


def check_slopes(slopes: str) -> None:
    if slopes not in _SLOPES:
        raise ValueError(f"slopes must be one of {_SLOPES}, got {slopes!r}.")


def weight_at_field(
    ddf: torch.Tensor, fixed_weight: torch.Tensor | None, moving_weight: torch.Tensor | None
) -> torch.Tensor | None:
    """Product of the fixed weight and the moving one where a field ``(B, D, *size)`` in voxels looks for it."""
    if moving_weight is None:
        return fixed_weight
    warped = warp(moving_weight, ddf)
    return warped if fixed_weight is None else fixed_weight * warped


def _slopes(
    fixed: torch.Tensor, moving: torch.Tensor, warped: torch.Tensor, ddf: torch.Tensor, of: str
) -> list[torch.Tensor] | None:
    if of == "mean":
        return central_differences((fixed + warped) / 2)
    return [warp(slope, ddf) for slope in central_differences(moving)] if of == "moving" else None


def _fit(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    coarse_ddf: torch.Tensor,
    spacing: Sequence[int],
    fixed_weight: torch.Tensor | None,
    moving_weight: torch.Tensor | None,
) -> bool:
    """Whether all sizes are those that compiled code must be able to trust, on three axes."""
    if fixed.dim() != 5 or moving.dim() != 5 or fixed.shape[:2] != moving.shape[:2]:
        return False
    items, size = len(fixed), fixed.shape[2:]
    fits = coarse_ddf.shape == (items, 3, *grid_size(size, spacing))
    fits &= fixed_weight is None or fixed_weight.shape == (items, 1, *size)
    return fits and (moving_weight is None or moving_weight.shape == (items, 1, *moving.shape[2:]))
