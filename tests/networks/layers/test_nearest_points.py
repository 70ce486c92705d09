# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import pytest
import torch

from monai_reg_ext.networks.layers import nearest_points


@pytest.mark.parametrize("block", [100, 1 << 24])
def test_points_come_by_their_distance_however_many_are_taken_at_once(block, monkeypatch):
    monkeypatch.setattr(importlib.import_module("monai_reg_ext.networks.layers.nearest_points"), "_BLOCK", block)
    points = torch.randn(30, 3) * torch.tensor([1.0, 5.0, 2.0])

    nearest = nearest_points(points, 4)

    distances = (points[:, None] - points).norm(dim=2)
    assert torch.equal(nearest, distances.argsort(1)[:, :4])
    assert torch.equal(nearest[:, 0], torch.arange(30))


def test_near_points_far_from_the_origin_are_told_apart():
    # more than 25 points: fewer are told apart by torch.cdist anyway
    line = torch.tensor([number**2 / 100 for number in range(40)])
    points = torch.stack([line + 4096, torch.zeros(40)], 1)

    assert torch.equal(nearest_points(points, 2)[1:, 1], torch.arange(39))


def test_there_are_no_more_neighbours_than_points():
    assert nearest_points(torch.randn(3, 2), 8).shape == (3, 3)
