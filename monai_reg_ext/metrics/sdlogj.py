# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.metrics.pair_metric import PairMetric
from monai_reg_ext.networks.layers.jacobian import jacobian_determinant

__all__ = ["SDlogJMetric", "compute_sdlogj", "interior_jacobian"]


def interior_jacobian(ddf: torch.Tensor, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Jacobian determinants that Learn2Reg counts: all but the two outermost voxels of every face.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels of the fixed grid.
        mask: ``(B, 1, I, J, K)`` on the same grid; only voxels above 0 count.

    Returns:
        One flat tensor per item of the batch.

    Raises:
        ValueError: when an axis is shorter than 5 voxels, or the mask does not fit the field.
    """
    determinant = jacobian_determinant(ddf)[:, 1:-1, 1:-1, 1:-1]
    if determinant[0].numel() == 0:
        raise ValueError(
            "Two voxels on every face are not counted, so the displacement field needs at least 5 voxels per axis, "
            f"got {tuple(ddf.shape)}."
        )
    if mask is None:
        return list(determinant.flatten(1))
    if mask.shape != (ddf.shape[0], 1, *ddf.shape[2:]):
        raise ValueError(
            f"The mask must lie on the grid of the displacement field: expected {(len(ddf), 1, *ddf.shape[2:])}, "
            f"got {tuple(mask.shape)}. Use the mask of the fixed image."
        )
    counted = mask[:, 0, 2:-2, 2:-2, 2:-2] > 0
    return [values[inside] for values, inside in zip(determinant, counted, strict=True)]


def compute_sdlogj(ddf: torch.Tensor, mask: torch.Tensor | None = None, offset: float = 3.0) -> torch.Tensor:
    """Standard deviation of the logarithm of the Jacobian determinant, Learn2Reg's measure of smoothness.

    The challenge adds 3 to the determinant before the logarithm, so its figures are about a quarter of the true
    standard deviation. With ``offset=0`` the result is the true one; each folded voxel then enters as ``log(1e-9)``
    and a few of them dominate it.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels of the fixed grid.
        mask: ``(B, 1, I, J, K)``; only voxels above 0 count, as in the challenge's masked tasks.
        offset: added to the determinant; 3 is the challenge's.

    Returns:
        ``(B,)`` float64; NaN where the mask leaves no voxel.
    """
    logarithms = [(values.double() + offset).clamp(1e-9, 1e9).log() for values in interior_jacobian(ddf, mask)]
    return torch.stack([(values - values.mean()).square().mean().sqrt() for values in logarithms])


class SDlogJMetric(PairMetric):
    """SDlogJ of each pair and its mean; ``metric(y_pred=ddf, y=fixed_mask)``, the mask is optional.

    Args:
        offset: see :py:func:`compute_sdlogj`.
    """

    def __init__(self, offset: float = 3.0) -> None:
        super().__init__()
        self.offset = offset

    def compute_pair(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return compute_sdlogj(y_pred[None], None if y is None else y[None], self.offset)
