# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_reg_ext.handlers.pair_metric_handler import PairMetricHandler
from monai_reg_ext.metrics import SDlogJMetric

__all__ = ["SDlogJHandler"]


class SDlogJHandler(PairMetricHandler):
    """Learn2Reg's SDlogJ (``sdlogj``) of the displacement field ``pred``, inside ``fixed_mask`` where there is one."""

    value_name = "sdlogj"
    required = ("pred",)

    def __init__(self) -> None:
        super().__init__(SDlogJMetric())

    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        return {"sdlogj": self.metric_fn.compute_pair(pair["pred"], pair.get("fixed_mask")).item()}
