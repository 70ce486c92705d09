# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_reg_ext.handlers.pair_metric_handler import PairMetricHandler
from monai_reg_ext.metrics import Learn2RegHD95Metric

__all__ = ["Learn2RegHD95Handler"]


class Learn2RegHD95Handler(PairMetricHandler):
    """Learn2Reg's mean 95 % Hausdorff distance, in voxels of the fixed grid (``hd95``).

    Needs ``warped_label`` and ``fixed_label`` on the fixed grid and ``moving_label`` on its own, each ``(1, ...)``.

    Args:
        labels: which labels; by default those that fixed and moving have in common, pair by pair.
    """

    value_name = "hd95"
    required = ("warped_label", "fixed_label", "moving_label")

    def __init__(self, labels: Sequence[int] | None = None) -> None:
        super().__init__(Learn2RegHD95Metric(labels))

    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        return {"hd95": self.metric_fn.compute_pair(*(pair[key] for key in self.required)).item()}
