# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["jacobian_determinant"]


def jacobian_determinant(ddf: torch.Tensor) -> torch.Tensor:
    """Local volume change of the map ``x -> x + ddf(x)``: the determinant of ``I + grad(ddf)``.

    Derivatives are central differences, so the outermost voxel of every face has no value. The determinant of a field
    in voxels is that of the same field in mm as long as fixed and moving spacing are equal; otherwise multiply it by
    the ratio of the voxel volumes, moving over fixed.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels; channel *c* moves along array axis *c*.

    Returns:
        ``(B, I - 2, J - 2, K - 2)``: 1 keeps the volume, 0 and below folds. float64 for a float64 field, else float32.
        Memory: up to 16 volumes in that type.

    Raises:
        ValueError: when the field does not have three axes and three channels, or an axis is shorter than 3 voxels.

    Source: Learn2Reg's evaluation takes the same differences; see :py:func:`monai_reg_ext.metrics.compute_sdlogj`.
    """
    if ddf.dim() != 5 or ddf.shape[1] != 3 or min(ddf.shape[2:]) < 3:
        raise ValueError(
            "The Jacobian determinant needs a displacement field (B, 3, I, J, K) of at least 3 voxels per axis, "
            f"got {tuple(ddf.shape)}."
        )
    if ddf.dtype != torch.float64:
        ddf = ddf.float()
    # rows of I + grad(ddf): a, b, c are the components 0, 1, 2 of the map, each derived along the three axes
    (a0, b0, c0), (a1, b1, c1), (a2, b2, c2) = (_derivative_of_map(ddf, axis) for axis in range(3))
    return a0 * (b1 * c2 - b2 * c1) - a1 * (b0 * c2 - b2 * c0) + a2 * (b0 * c1 - b1 * c0)


def _derivative_of_map(ddf: torch.Tensor, axis: int) -> tuple[torch.Tensor, ...]:
    interior = [slice(1, -1)] * 3
    after, before = list(interior), list(interior)
    after[axis], before[axis] = slice(2, None), slice(None, -2)
    derivative = 0.5 * (ddf[(..., *after)] - ddf[(..., *before)])
    derivative[:, axis] += 1.0
    return derivative.unbind(1)
