# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import look_up_option

__all__ = ["aggregate_cases"]

# the challenge's choice; for HD95 it is the side of the good cases
QUANTILE_OF_30 = {"dice": 0.3, "hd95": 0.3, "sdlogj": 0.7, "tre": 0.7}


def aggregate_cases(values: Sequence[float] | np.ndarray | torch.Tensor, metric: str) -> dict[str, float]:
    """Mean, standard deviation and "30" of a metric over cases, as Learn2Reg's evaluation prints them.

    "30" is a quantile over cases: 0.3 for Dice and HD95, 0.7 for SDlogJ and TRE. (The challenge's tables call something
    else by that name: the mean over the most difficult 30 % of labels or landmarks.)

    Args:
        values: one per case; NaN is left out.
        metric: ``"dice"``, ``"hd95"``, ``"sdlogj"`` or ``"tre"``.

    Returns:
        ``{"mean", "std", "30"}``; the standard deviation is the population's. NaN when no case has a value.

    Raises:
        ValueError: for another metric.
    """
    quantile = look_up_option(metric, QUANTILE_OF_30)
    known = np.asarray(values, dtype=np.float64).ravel()
    known = known[~np.isnan(known)]
    if known.size == 0:
        return dict.fromkeys(("mean", "std", "30"), float("nan"))
    return {"mean": float(known.mean()), "std": float(known.std()), "30": float(np.quantile(known, quantile))}
