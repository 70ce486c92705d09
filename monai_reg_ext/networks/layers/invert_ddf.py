# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.warp import warp

__all__ = ["invert_ddf"]


def invert_ddf(ddf: torch.Tensor, iterations: int = 50) -> torch.Tensor:
    """Inverse of a displacement field by fixed-point iteration, ``v <- -ddf(x + v(x))``.

    Converges where the field contracts (its Lipschitz constant is below 1, hence without folding); the residual is
    ``compose_ddf(ddf, inverse)``. Outside its grid the field goes on as at its border.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels.
        iterations: number of fixed-point steps.

    Returns:
        ``(B, 3, I, J, K)`` in voxels of the same grid.

    Source: Chen et al., "A simple fixed-point approach to invert a deformation field", Medical Physics 35 (2008).
    """
    inverse = -ddf
    for _ in range(iterations):
        inverse = -warp(ddf, inverse)
    return inverse
