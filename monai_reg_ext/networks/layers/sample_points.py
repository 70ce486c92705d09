# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.warp import sample

__all__ = ["sample_points"]


def sample_points(
    volume: torch.Tensor, points: torch.Tensor, mode: str = "bilinear", padding: str = "border"
) -> torch.Tensor:
    """Values of a volume at scattered points.

    Args:
        volume: ``(B, C, I, J, K)``.
        points: ``(B, N, 3)`` in voxels of the volume.
        mode: see :py:func:`sample`.
        padding: see :py:func:`sample`.

    Returns:
        ``(B, N, C)`` with gradients to both.
    """
    return sample(volume, points.mT[..., None, None], mode, padding)[..., 0, 0].mT
