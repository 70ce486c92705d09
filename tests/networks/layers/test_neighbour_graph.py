# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers import NeighbourGraph


def _edges(graph):
    return set(zip(graph.rows.tolist(), graph.columns.tolist(), strict=True))


def test_neighbours_are_the_nearest_of_either_point():
    points = torch.randn(40, 3) * torch.tensor([1.0, 5.0, 2.0])

    edges = _edges(NeighbourGraph(points, 4))

    nearest = torch.cdist(points, points).argsort(1)[:, 1:5].tolist()
    expected = {(row, column) for row, columns in enumerate(nearest) for column in columns}
    assert edges == expected | {(column, row) for row, column in expected}


def test_the_mean_is_that_of_the_neighbours_without_the_point_itself():
    points = torch.tensor([[0.0, 0], [1, 0], [3, 0]])
    graph = NeighbourGraph(points, 1)  # 0 - 1 - 2

    mean = graph.mean(torch.tensor([[1.0, 0], [10, 1], [100, 2]]))

    # edges of length 1 and 2, each twice: mean square 2.5
    near, far = (torch.exp(torch.tensor(-0.5 * square / 2.5)) for square in (1.0, 4.0))
    middle = (near * torch.tensor([1.0, 0]) + far * torch.tensor([100.0, 2])) / (near + far)
    torch.testing.assert_close(mean, torch.stack([torch.tensor([10.0, 1]), middle, torch.tensor([10.0, 1])]))


def test_few_points_are_all_neighbours_and_one_has_none():
    assert len(_edges(NeighbourGraph(torch.randn(4, 3), 15))) == 12
    with pytest.raises(ValueError, match="two points and a neighbour at least, got 1 and 15"):
        NeighbourGraph(torch.zeros(1, 3))
