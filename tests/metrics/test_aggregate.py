# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from monai_reg_ext.metrics import aggregate_cases

CASES = torch.arange(11.0).flip(0)  # the quantile q of 0 ... 10 is 10 q


@pytest.mark.parametrize(("metric", "quantile"), [("dice", 3.0), ("hd95", 3.0), ("sdlogj", 7.0), ("tre", 7.0)])
def test_thirty_is_the_low_quantile_of_dice_and_hd95_and_the_high_one_of_sdlogj_and_tre(metric, quantile):
    result = aggregate_cases(CASES, metric)

    assert result == pytest.approx({"mean": 5.0, "std": math.sqrt(10.0), "30": quantile})


def test_cases_without_a_value_are_left_out():
    assert aggregate_cases([4.0, math.nan, 2.0], "dice") == pytest.approx({"mean": 3.0, "std": 1.0, "30": 2.6})


def test_nothing_to_aggregate_is_not_zero():
    assert all(math.isnan(value) for value in aggregate_cases([math.nan], "tre").values())


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="dice"):
        aggregate_cases([1.0], "dise")
