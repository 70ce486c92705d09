# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["central_differences"]


def central_differences(features: torch.Tensor) -> list[torch.Tensor]:
    """Derivatives along every axis: half the difference of the neighbours on both sides; the border repeats.

    Args:
        features: ``(B, C, *size)``, floating dtype.

    Returns:
        For each axis a tensor of the same shape, per voxel, with gradients.
    """
    return [_central_difference(features, dim) for dim in range(2, features.dim())]


def _central_difference(features: torch.Tensor, dim: int) -> torch.Tensor:
    difference = features.diff(dim=dim)
    twice = torch.zeros_like(features)
    twice.narrow(dim, 0, difference.shape[dim]).add_(difference)
    twice.narrow(dim, 1, difference.shape[dim]).add_(difference)
    return twice / 2
