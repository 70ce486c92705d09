# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin

__all__ = ["gaussian_taps", "separable_filter"]

Taps = tuple[float, ...]


def separable_filter(volume: torch.Tensor, taps: Sequence[Sequence[float] | None]) -> torch.Tensor:
    """Correlate every spatial axis with its own weights: ``filtered[i] = sum_k taps[r + k] * volume[i + k]``.

    Beyond the faces the border repeats.

    Args:
        volume: ``(B, C, *size)``, one to three axes, floating dtype.
        taps: for each axis an odd number of weights, or ``None`` to leave it as it is.

    Returns:
        The same shape and dtype, with gradients.

    Raises:
        ValueError: when there are not weights for every axis, or an even number of them.
    """
    if len(taps) != volume.dim() - 2 or any(axis is not None and len(axis) % 2 == 0 for axis in taps):
        raise ValueError(
            f"a filter of {volume.dim() - 2} axes needs an odd number of weights or None for each of them, got "
            f"{[axis if axis is None else len(axis) for axis in taps]}."
        )
    kernel = compiled_twin("banded_filter", volume) if volume.dim() == 5 and volume.numel() else None
    if kernel is not None:
        sides = zip(volume.shape[2:], taps, strict=True)
        return kernel.banded_filter(volume, [_band(extent, tuple(axis or (1.0,))) for extent, axis in sides])
    for dim, axis in enumerate(taps, start=2):
        if axis is not None:
            volume = _filter_axis(volume, dim, axis)
    return volume


def gaussian_taps(sigma: float) -> Taps:
    """Weights of a Gaussian that add up to 1, cut off at one and a half standard deviations, rounded up.

    Args:
        sigma: standard deviation in voxels, > 0.

    Returns:
        ``2 ceil(1.5 sigma) + 1`` numbers.
    """
    if not sigma > 0:
        raise ValueError(f"sigma, the standard deviation in voxels, must be > 0, got {sigma}.")
    reach = math.ceil(1.5 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)]
    return tuple(weight / sum(weights) for weight in weights)


def _filter_axis(volume: torch.Tensor, dim: int, taps: Sequence[float]) -> torch.Tensor:
    reach, size = len(taps) // 2, volume.shape[dim]
    total = volume * taps[reach]
    for shift in range(1, reach + 1):
        inside = max(size - shift, 0)
        beyond = size - inside
        ahead, behind = taps[reach + shift], taps[reach - shift]
        total.narrow(dim, 0, inside).add_(volume.narrow(dim, size - inside, inside), alpha=ahead)
        total.narrow(dim, inside, beyond).add_(volume.narrow(dim, size - 1, 1), alpha=ahead)
        total.narrow(dim, size - inside, inside).add_(volume.narrow(dim, 0, inside), alpha=behind)
        total.narrow(dim, 0, beyond).add_(volume.narrow(dim, 0, 1), alpha=behind)
    return total


@lru_cache(maxsize=64)
def _band(extent: int, taps: Taps) -> Any:
    from monai_reg_ext.networks.kernels.banded_filter import band

    return band(_filter_axis(torch.eye(extent)[None, None], 2, taps)[0, 0])
