# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch

from monai_reg_ext.metrics.pair_metric import PairMetric
from monai_reg_ext.networks.layers.warp import identity_grid, sample

__all__ = ["InverseConsistencyMetric", "compute_inverse_consistency", "inverse_consistency_map"]


def inverse_consistency_map(
    ddf_ab: torch.Tensor,
    ddf_ba: torch.Tensor,
    affine_a: torch.Tensor | None = None,
    affine_b: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far every voxel ends from where it started when it goes to the other image and back.

    On one grid in voxels this is ``|ddf_ab(x) + ddf_ba(x + ddf_ab(x))|``, the second field by linear interpolation.

    Args:
        ddf_ab: ``(B, 3, I, J, K)`` in voxels of grid A, registering B to A (A is fixed).
        ddf_ba: ``(B, 3, *size)`` in voxels of grid B, registering A to B.
        affine_a: ``(4, 4)``, voxels of grid A to world mm; without it both fields lie on one grid and the error is
            counted in voxels.
        affine_b: the same of grid B; by default that of A.

    Returns:
        ``(B, I, J, K)`` float32, mm or voxels; NaN where the voxel leaves image B, whose outermost voxels reach
        half a voxel beyond their centres.
    """
    in_voxels = torch.eye(4, dtype=torch.float64)
    affine_a = in_voxels if affine_a is None else torch.as_tensor(affine_a).double()
    affine_b = affine_a if affine_b is None else torch.as_tensor(affine_b).double()
    a_to_b = torch.linalg.solve(affine_b, affine_a)

    start = identity_grid(ddf_ab.shape[2:], ddf_ab)
    in_b = _apply(a_to_b, start + ddf_ab.float())
    back = _apply(torch.linalg.inv(a_to_b), in_b + sample(ddf_ba.float(), in_b))
    error = torch.linalg.vector_norm(_apply(affine_a[:3, :3], back - start), dim=1)

    last = torch.tensor(ddf_ba.shape[2:], device=in_b.device).reshape(1, 3, 1, 1, 1) - 1
    inside = ((in_b >= -0.5) & (in_b <= last + 0.5)).all(1)
    return error.masked_fill(~inside, torch.nan)


def _apply(matrix: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Move ``(B, 3, I, J, K)`` coordinates by a ``(4, 4)`` affine, or turn vectors by a ``(3, 3)`` matrix."""
    matrix = matrix.to(coordinates.device, coordinates.dtype)
    moved = torch.einsum("dc,bc...->bd...", matrix[:3, :3], coordinates)
    return moved if matrix.shape[1] == 3 else moved + matrix[:3, 3].reshape(1, 3, 1, 1, 1)


def compute_inverse_consistency(
    ddf_ab: torch.Tensor,
    ddf_ba: torch.Tensor,
    affine_a: torch.Tensor | None = None,
    affine_b: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean and 95 % quantile of the inverse consistency error; see :py:func:`inverse_consistency_map`.

    Args:
        ddf_ab: ``(B, 3, I, J, K)`` in voxels of grid A.
        ddf_ba: ``(B, 3, *size)`` in voxels of grid B.
        affine_a: ``(4, 4)``; without it the error is counted in voxels.
        affine_b: ``(4, 4)``; by default that of A.
        mask: ``(B, 1, I, J, K)``; only voxels above 0 count.

    Returns:
        ``(B, 2)`` float64: mean, 95 % quantile. Voxels that leave image B do not count; NaN when none is left.
    """
    error = inverse_consistency_map(ddf_ab, ddf_ba, affine_a, affine_b)
    counted = error.isfinite() if mask is None else error.isfinite() & (mask[:, 0] > 0)
    rows = []
    for values in (item[inside].double().cpu().numpy() for item, inside in zip(error, counted, strict=True)):
        rows.append([values.mean(), np.quantile(values, 0.95)] if values.size else [np.nan, np.nan])
    return torch.tensor(rows, dtype=torch.float64)


class InverseConsistencyMetric(PairMetric):
    """Mean inverse consistency error of each pair and of all pairs; ``metric(y_pred=ddf_ab, y=ddf_ba)``.

    With ``affine_a=...`` (and ``affine_b=...``), batched like the fields, in mm; else in voxels of one common grid.
    """

    def compute_pair(
        self,
        y_pred: torch.Tensor,
        y: torch.Tensor,
        affine_a: torch.Tensor | None = None,
        affine_b: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return compute_inverse_consistency(y_pred[None], y[None], affine_a, affine_b)[:, 0]
