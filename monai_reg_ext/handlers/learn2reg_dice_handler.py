# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_reg_ext.handlers.pair_metric_handler import PairMetricHandler
from monai_reg_ext.metrics import Learn2RegDiceMetric
from monai_reg_ext.transforms import ResampleToFixed

__all__ = ["Learn2RegDiceHandler"]


class Learn2RegDiceHandler(PairMetricHandler):
    """Learn2Reg's mean Dice in percent, after (``dice``) and before registration (``dice_before``).

    Needs ``warped_label`` and ``fixed_label`` on the fixed grid and ``moving_label`` on its own, each ``(1, ...)`` with
    an affine. Before registration the moving label lies where its header puts it.

    Args:
        labels: which labels; by default those that fixed and moving have in common, pair by pair.
    """

    value_name = "dice"
    required = ("warped_label", "fixed_label", "moving_label")

    def __init__(self, labels: Sequence[int] | None = None) -> None:
        super().__init__(Learn2RegDiceMetric(labels))

    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        warped, fixed, moving = (pair[key] for key in self.required)
        before = ResampleToFixed().labels(
            moving, fixed.shape[1:], fixed.affine.cpu(), torch.eye(4, dtype=torch.float64)
        )
        return {
            "dice": 100 * self.metric_fn.compute_pair(warped, fixed, moving).item(),
            "dice_before": 100 * self.metric_fn.compute_pair(before, fixed, moving).item(),
        }
