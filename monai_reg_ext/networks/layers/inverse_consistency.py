# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.compat import reference_stretch
from monai_reg_ext.networks.layers.warp import identity_grid, sample

__all__ = ["make_inverse_consistent"]


def make_inverse_consistent(
    forward: torch.Tensor, backward: torch.Tensor, iterations: int = 15, compat: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring two opposite fields together until each is nearly the other's inverse.

    Every iteration replaces both at once by the mean of the field and the negated other field along it,
    ``a <- (a - b(x + a)) / 2``, ``b <- (b - a(x + b)) / 2``.

    Args:
        forward: ``(B, 3, i, j, k)`` in voxels (cells) of the common grid.
        backward: ``(B, 3, i, j, k)``, the opposite direction.
        iterations: number of symmetric updates.
        compat: the reference's sampling: displacements stretched by ``N / (N - 1)``, zeros outside the grid.

    Returns:
        Both fields, same shapes and units.

    Source: ConvexAdam, inverse consistency step; fixed point ``a = -b(x + a)``.
    """
    identity = identity_grid(forward.shape[2:], forward)
    stretch = reference_stretch(forward) if compat else 1.0
    padding = "zeros" if compat else "border"
    for _ in range(iterations):
        along_forward = sample(backward, identity + forward * stretch, padding=padding)
        along_backward = sample(forward, identity + backward * stretch, padding=padding)
        forward, backward = (forward - along_forward) / 2, (backward - along_backward) / 2
    return forward, backward
