# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from monai_reg_ext.metrics import PairMetric


class Largest(PairMetric):
    def compute_pair(self, y_pred, y=None, offset=0.0):
        assert y_pred.dim() == 1  # the batch axis is gone
        return y_pred.max() + (0 if y is None else y.max()) + offset


def test_a_batch_and_a_list_of_pairs_give_one_row_per_pair():
    batch = torch.tensor([[1.0, 5.0], [2.0, 3.0]])

    for pairs in (batch, list(batch)):
        assert Largest()(pairs, pairs, offset=torch.tensor([0.5, 0.25])).tolist() == [[10.5], [6.25]]


def test_the_mean_leaves_out_pairs_without_a_value_and_starts_anew_after_a_reset():
    metric = Largest()
    metric([torch.tensor([4.0]), torch.tensor([math.nan]), torch.tensor([1.0, 8.0])])
    assert metric.aggregate().item() == pytest.approx(6.0)

    metric.reset()
    metric(torch.ones(1, 3))
    assert metric.aggregate().item() == 1.0


def test_without_any_pair_or_value_the_mean_is_nan_and_not_zero():
    metric = Largest()
    assert math.isnan(metric.aggregate())

    metric([torch.tensor([math.nan])])
    assert math.isnan(metric.aggregate())
