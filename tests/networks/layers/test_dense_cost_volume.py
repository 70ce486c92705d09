# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: 4 * 2 * 24 * 4)


def test_the_chunks_are_slices_of_the_tensor_in_order(small_chunks):
    cost, labels = torch.randn(2, 10, 2, 3, 4), torch.randn(10, 3)

    volume = DenseCostVolume(cost, labels)

    assert [(start, chunk.shape[1]) for start, chunk in volume] == [(0, 4), (4, 4), (8, 2)]
    assert torch.equal(torch.cat([chunk for _, chunk in volume], 1), cost)
    assert all(chunk.data_ptr() == cost[:, start:].data_ptr() for start, chunk in volume)
    assert torch.equal(volume.labels, labels)


def test_the_gradient_is_what_was_given_for_each_chunk(small_chunks):
    cost = torch.randn(2, 10, 2, 3, 4, requires_grad=True)
    seen = []

    def squared(start, chunk):
        seen.append(start)
        return chunk.square()

    (gradient,) = DenseCostVolume(cost, torch.randn(10, 3)).pull_back(squared)

    assert seen == [0, 4, 8]
    assert torch.equal(gradient, cost.detach().square())


@pytest.mark.parametrize(
    ("dtype", "searched"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_costs_are_searched_in_float32_and_have_half_gradients(dtype, searched):
    cost = torch.randn(1, 5, 2, 3, 4).to(dtype)

    volume = DenseCostVolume(cost, torch.randn(5, 3))

    assert volume.labels.dtype == searched
    assert {chunk.dtype for _, chunk in volume} == {searched}
    assert volume.pull_back(lambda start, chunk: torch.ones_like(chunk))[0].dtype == dtype


@pytest.mark.parametrize(
    ("cost", "labels"), [((1, 5, 2, 3, 4), (4, 3)), ((1, 5, 2, 3), (5, 3)), ((1, 3, 2, 4, 2), (3,))]
)
def test_costs_and_labels_that_do_not_belong_together_are_refused(cost, labels):
    with pytest.raises(ValueError, match=r"cost \(B, L, i, j, k\) and labels \(L, 3\), got cost of shape \(.*\) and"):
        DenseCostVolume(torch.zeros(cost), torch.zeros(labels))
