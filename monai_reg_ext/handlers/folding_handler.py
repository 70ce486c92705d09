# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_reg_ext.handlers.pair_metric_handler import PairMetricHandler
from monai_reg_ext.metrics import FoldingMetric

__all__ = ["FoldingHandler"]


class FoldingHandler(PairMetricHandler):
    """Percentage of folded voxels (``folding_percent``) of the displacement field ``pred``, inside ``fixed_mask`` where
    there is one.
    """

    value_name = "folding_percent"
    required = ("pred",)

    def __init__(self) -> None:
        super().__init__(FoldingMetric())

    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        return {"folding_percent": self.metric_fn.compute_pair(pair["pred"], pair.get("fixed_mask")).item()}
