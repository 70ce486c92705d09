# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from monai_reg_ext.metrics import FoldingMetric, compute_folding_percent


def sine_field(size=(44, 7, 6)) -> torch.Tensor:
    ddf = torch.zeros(1, 3, *size, dtype=torch.float64)
    ddf[0, 0] = 3 * torch.sin(2 * math.pi * torch.arange(size[0], dtype=torch.float64) / 10)[:, None, None]
    return ddf


def test_a_sine_folds_where_its_central_difference_is_minus_one_or_less():
    # 1 + 3 sin(36 deg) cos(36 deg x) <= 0 for x = 4, 5, 6 of every ten; 40 inner planes are four periods
    assert compute_folding_percent(sine_field()).item() == pytest.approx(30.0)


def test_only_voxels_of_the_mask_count():
    mask = torch.zeros(1, 1, 44, 7, 6)
    mask[:, :, 4:8] = 1  # planes 4, 5, 6 fold, plane 7 does not

    assert compute_folding_percent(sine_field(), mask).item() == pytest.approx(75.0)


def test_determinant_zero_is_a_folding_and_every_smaller_shrinkage_is_not():
    plane = torch.arange(9, dtype=torch.float64)[:, None, None].expand(9, 5, 6)
    collapsed, shrunk = torch.zeros(2, 1, 3, 9, 5, 6, dtype=torch.float64)
    collapsed[0, 0], shrunk[0, 0] = -plane, -0.99 * plane

    assert compute_folding_percent(torch.cat([collapsed, shrunk])).tolist() == [100.0, 0.0]


def test_the_metric_averages_over_pairs_of_different_size():
    metric = FoldingMetric()
    metric([sine_field()[0], torch.zeros(3, 5, 8, 6)])

    assert metric.get_buffer().flatten().tolist() == pytest.approx([30.0, 0.0])
    assert metric.aggregate().item() == pytest.approx(15.0)
