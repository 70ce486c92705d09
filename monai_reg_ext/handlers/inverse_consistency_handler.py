# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_reg_ext.handlers.pair_metric_handler import PairMetricHandler
from monai_reg_ext.metrics import InverseConsistencyMetric

__all__ = ["InverseConsistencyHandler"]


class InverseConsistencyHandler(PairMetricHandler):
    """Mean distance in mm by which a point misses itself on the way there and back (``inverse_consistency_mm``).

    Needs ``pred`` and ``pred_inverse``, the field of the opposite direction, both MetaTensors ``(3, I, J, K)`` in
    voxels of their own grid with its affine; a method that gives one direction only has no value. Every voxel of the
    fixed image goes to the moving one and back; between voxels the second field is interpolated linearly.
    ``inverse_residual_voxel`` is handed on where :py:class:`monai_reg_ext.transforms.InverseFieldd` left it: what the
    numerical inversion alone misses, at the moving image's voxels.
    """

    value_name = "inverse_consistency_mm"
    required = ("pred", "pred_inverse")

    def __init__(self) -> None:
        super().__init__(InverseConsistencyMetric())

    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        there, back = (pair[key] for key in self.required)
        error = self.metric_fn.compute_pair(there.as_tensor(), back.as_tensor(), there.affine, back.affine)
        values = {"inverse_consistency_mm": error.item()}
        if "inverse_residual_voxel" in pair:
            values["inverse_residual_voxel"] = pair["inverse_residual_voxel"]
        return values
