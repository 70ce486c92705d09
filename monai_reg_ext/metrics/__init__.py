# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from .aggregate import aggregate_cases
from .folding import FoldingMetric, compute_folding_percent
from .inverse_consistency import InverseConsistencyMetric, compute_inverse_consistency, inverse_consistency_map
from .label_maps import common_labels
from .learn2reg_dice import Learn2RegDiceMetric, compute_learn2reg_dice
from .learn2reg_hd95 import Learn2RegHD95Metric, compute_learn2reg_hd95
from .pair_metric import PairMetric
from .rank_score import LOWER_IS_BETTER, rank_scores
from .sdlogj import SDlogJMetric, compute_sdlogj, interior_jacobian
from .tre import TREMetric, compute_learn2reg_tre, compute_tre

__all__ = [
    "LOWER_IS_BETTER",
    "FoldingMetric",
    "InverseConsistencyMetric",
    "Learn2RegDiceMetric",
    "Learn2RegHD95Metric",
    "PairMetric",
    "SDlogJMetric",
    "TREMetric",
    "aggregate_cases",
    "common_labels",
    "compute_folding_percent",
    "compute_inverse_consistency",
    "compute_learn2reg_dice",
    "compute_learn2reg_hd95",
    "compute_learn2reg_tre",
    "compute_sdlogj",
    "compute_tre",
    "interior_jacobian",
    "inverse_consistency_map",
    "rank_scores",
]
