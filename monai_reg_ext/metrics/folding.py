# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.metrics.pair_metric import PairMetric
from monai_reg_ext.metrics.sdlogj import interior_jacobian

__all__ = ["FoldingMetric", "compute_folding_percent"]


def compute_folding_percent(ddf: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Percentage of voxels where the map is not invertible: the true Jacobian determinant is 0 or below.

    The same voxels are counted as for SDlogJ. (Learn2Reg's script counts foldings after having added 3 and clipped,
    and so never finds any.) Central differences do not see a zig-zag of every second voxel.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels of the fixed grid.
        mask: ``(B, 1, I, J, K)``; only voxels above 0 count.

    Returns:
        ``(B,)`` float64 in ``0 .. 100``; NaN where the mask leaves no voxel.
    """
    return torch.stack([100 * (values <= 0).double().mean() for values in interior_jacobian(ddf, mask)])


class FoldingMetric(PairMetric):
    """Percentage of folded voxels of each pair and its mean; ``metric(y_pred=ddf, y=fixed_mask)``, mask optional."""

    def compute_pair(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return compute_folding_percent(y_pred[None], None if y is None else y[None])
