# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers import farthest_points


def test_each_point_is_the_farthest_from_those_before_it():
    points = torch.randn(60, 3) * torch.tensor([1.0, 3.0, 0.5])

    chosen = farthest_points(points, 25)

    distance = torch.cdist(points, points)
    assert chosen[0] == 0
    for place in range(1, 25):
        nearest = distance[:, chosen[:place]].amin(1)
        assert nearest[chosen[place]] == nearest.max()


def test_there_are_no_more_than_all_of_them_and_none_twice():
    assert sorted(farthest_points(torch.randn(7, 2), 50).tolist()) == list(range(7))
    assert farthest_points(torch.zeros(0, 3), 4).tolist() == []
