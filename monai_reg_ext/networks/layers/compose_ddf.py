# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.warp import warp

__all__ = ["compose_ddf"]


def compose_ddf(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One field for two warps in a row: ``warp(warp(image, first), second) = warp(image, compose_ddf(first, second))``.

    ``first`` acts on the moving image, ``second`` on the result; a point is moved by ``second``, then by ``first``.

    Args:
        first: ``(B, 3, *first_size)`` in voxels.
        second: ``(B, 3, *size)`` in voxels.

    Returns:
        ``(B, 3, *size)`` in voxels: ``second(x) + first(x + second(x))``. Outside its grid ``first`` goes on as at its
        border.
    """
    return second + warp(first, second)
