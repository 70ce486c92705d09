# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

__all__ = ["LOWER_IS_BETTER", "rank_scores"]

LOWER_IS_BETTER = ("hd95", "sdlogj", "tre_mm", "tre_hard_mm", "folding_percent", "seconds")


def rank_scores(results: Mapping[str, Sequence[float]]) -> np.ndarray:
    """One figure for each of several candidates that were measured by several metrics, as Learn2Reg ranks them.

    For each metric the candidates' ranks are spread from 1 (best) to 0.1 (worst); ties share the mean of their places.
    A candidate's score is the geometric mean over the metrics.

    Args:
        results: values of all candidates by metric name; names in ``LOWER_IS_BETTER`` are errors. NaN ranks last.

    Returns:
        A score per candidate, in ``0.1 .. 1``.
    """
    scores = []
    for name, values in results.items():
        losses = np.asarray(values, dtype=np.float64) * (1 if name in LOWER_IS_BETTER else -1)
        ranks = scipy.stats.rankdata(np.nan_to_num(losses, nan=np.inf, posinf=np.inf))
        scores.append(1 - 0.9 * (ranks - 1) / max(len(ranks) - 1, 1))
    return np.exp(np.log(scores).mean(0))
