# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.points_in_mask import points_in_mask


def test_points_lie_inside_each_mask_and_are_the_same_every_time():
    inside = torch.zeros(2, 1, 9, 14, 11, dtype=torch.bool)
    inside[0, 0, 2:5, 3:12, 6:] = True
    inside[1, 0, 8, 13, 10] = True

    points = points_in_mask(inside, 200)

    assert points.shape == (2, 200, 3)
    for item, mask in zip(points, inside[:, 0], strict=True):
        cells = (item + 0.5).floor().long()
        assert mask[tuple(cells.T)].all()
    assert torch.equal(points, points_in_mask(inside, 200))


def test_points_are_spread_evenly():
    points = points_in_mask(torch.ones(1, 1, 8, 6, 10, dtype=torch.bool), 480)[0]

    # eight boxes of equal size hold 60 points each
    octant = (points > torch.tensor([3.5, 2.5, 4.5])).long() @ torch.tensor([4, 2, 1])
    assert (octant.bincount(minlength=8) - 60).abs().max() <= 6


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="points need a mask with a cell inside"):
        points_in_mask(torch.zeros(1, 1, 3, 4, 5, dtype=torch.bool), 7)
