# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin

__all__ = ["box_filter", "box_filter_adjoint", "box_filter_bands"]


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
    return _cascade(volume, widths, compat, adjoint=False)


def box_filter_adjoint(volume: torch.Tensor, widths: Sequence[int] = (3,), compat: bool = False) -> torch.Tensor:
    """The transpose of :py:func:`box_filter`: turns gradients of its output into gradients of its input."""
    return _cascade(volume, widths, compat, adjoint=True)


def _cascade(volume: torch.Tensor, widths: Sequence[int], compat: bool, adjoint: bool) -> torch.Tensor:
    for width in widths:
        if width < 1 or width % 2 == 0:
            raise ValueError(f"box widths must be odd and positive, got {tuple(widths)}.")
    widths = tuple(width for width in widths if width > 1)
    kernel = compiled_twin("banded_filter", volume) if volume.dim() == 5 and widths and volume.numel() else None
    if kernel is not None:
        return kernel.banded_filter(volume, box_filter_bands(volume.shape[2:], widths, compat, adjoint))
    for width in reversed(widths) if adjoint else widths:
        for dim in range(2, volume.dim()):
            volume = _moving_average(volume, dim, width // 2, compat, adjoint)
    return volume


def _moving_average(volume: torch.Tensor, dim: int, radius: int, compat: bool, adjoint: bool) -> torch.Tensor:
    size = volume.shape[dim]
    position = torch.arange(size, device=volume.device)
    inside = (position + radius).clamp(max=size - 1) - (position - radius).clamp(min=0) + 1
    inverse = inside.to(volume.dtype).reciprocal().view([-1] + [1] * (volume.dim() - 1 - dim))
    if adjoint and not compat:
        volume = volume * inverse
    total = volume.clone()
    for shift in range(1, min(radius, size - 1) + 1):
        total.narrow(dim, shift, size - shift).add_(volume.narrow(dim, 0, size - shift))
        total.narrow(dim, 0, size - shift).add_(volume.narrow(dim, shift, size - shift))
    if compat:
        return total.div_(2 * radius + 1)
    return total if adjoint else total.mul_(inverse)


def box_filter_bands(size: Sequence[int], widths: Sequence[int], compat: bool, adjoint: bool = False) -> list[Any]:
    """The cascade as one banded matrix for each axis, in the form of the compiled kernels."""
    return [_band(extent, tuple(widths), compat, adjoint) for extent in size]


@lru_cache(maxsize=64)
def _band(extent: int, widths: tuple[int, ...], compat: bool, adjoint: bool) -> Any:
    from monai_reg_ext.networks.kernels.banded_filter import band

    matrix = torch.eye(extent)[None, None]
    for width in widths:
        matrix = _moving_average(matrix, 2, width // 2, compat, adjoint=False)
    return band(matrix[0, 0].T if adjoint else matrix[0, 0])
