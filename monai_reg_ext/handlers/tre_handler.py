# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_reg_ext.handlers.pair_metric_handler import PairMetricHandler
from monai_reg_ext.metrics import TREMetric, compute_tre

__all__ = ["TREHandler"]


class TREHandler(PairMetricHandler):
    """Mean target registration error in mm, after (``tre_mm``) and before registration (``tre_mm_before``).

    Needs the displacement field ``pred``, a MetaTensor with the affine of the fixed image, and the corresponding
    ``fixed_points`` and ``moving_points``, ``(N, 3)`` in world mm.

    Args:
        interpolation: of the field between voxels, ``"linear"`` or ``"cubic"``.
        snapped: also give ``tre_mm_snapped``, moved points at the nearest voxel of the image ``moving``, which the pair
            then needs; see :py:func:`monai_reg_ext.metrics.compute_tre`.
    """

    value_name = "tre_mm"
    required = ("pred", "fixed_points", "moving_points")

    def __init__(self, interpolation: str = "linear", snapped: bool = False) -> None:
        super().__init__(TREMetric(interpolation))
        self.snapped = snapped

    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        pred, fixed_points, moving_points = (pair[key] for key in self.required)
        after = self.metric_fn.compute_pair(pred, moving_points, fixed_points, pred.affine)
        before = torch.linalg.vector_norm((fixed_points - moving_points).double(), dim=1).mean()
        values = {"tre_mm": after.item(), "tre_mm_before": before.item()}
        if self.snapped:
            places = pred, pred.affine, fixed_points, moving_points
            errors = compute_tre(*places, self.metric_fn.interpolation, pair["moving"].affine)
            values["tre_mm_snapped"] = errors.mean().item()
        return values
