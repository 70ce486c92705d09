# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_reg_ext.handlers.pair_metric_handler import PairMetricHandler
from monai_reg_ext.metrics import TREMetric

__all__ = ["TREHandler"]


class TREHandler(PairMetricHandler):
    """Mean target registration error in mm, after (``tre_mm``) and before registration (``tre_mm_before``).

    Needs the displacement field ``pred``, a MetaTensor with the affine of the fixed image, and the corresponding
    ``fixed_points`` and ``moving_points``, ``(N, 3)`` in world mm.

    Args:
        interpolation: of the field between voxels, ``"linear"`` or ``"cubic"``.
    """

    value_name = "tre_mm"
    required = ("pred", "fixed_points", "moving_points")

    def __init__(self, interpolation: str = "linear") -> None:
        super().__init__(TREMetric(interpolation))

    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        pred, fixed_points, moving_points = (pair[key] for key in self.required)
        after = self.metric_fn.compute_pair(pred, moving_points, fixed_points, pred.affine)
        before = torch.linalg.vector_norm((fixed_points - moving_points).double(), dim=1).mean()
        return {"tre_mm": after.item(), "tre_mm_before": before.item()}
