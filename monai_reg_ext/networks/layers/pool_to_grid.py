# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = ["pool_to_grid"]


def pool_to_grid(features: torch.Tensor, spacing: Sequence[int], compat: bool = False) -> torch.Tensor:
    """Average full-resolution features over the cells of a control grid.

    Args:
        features: ``(B, C, I, J, K)``.
        spacing: voxels per cell along each axis.
        compat: drop the voxels behind the last full cell, as convexAdam does. By default they form a last, partial
            cell, so that no voxel is lost and cell *i* always begins at voxel ``i * spacing``.

    Returns:
        ``(B, C, ceil(I / s), ceil(J / s), ceil(K / s))``; ``floor`` with ``compat``.
    """
    if not compat:
        # an image thinner than a cell is one partial cell
        spacing = [min(step, extent) for step, extent in zip(spacing, features.shape[2:], strict=True)]
    if all(step == 1 for step in spacing):
        return features
    return F.avg_pool3d(features, list(spacing), list(spacing), ceil_mode=not compat, count_include_pad=False)
