# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.cells_inside import cells_inside
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid


def test_cells_of_which_half_lies_inside_count():
    mask = torch.zeros(1, 1, 5, 4, 6)
    mask[..., 0:2, 0:2, 0:3] = 1  # all of a cell of 12 voxels
    mask[..., 2, 0:2, 0:3] = 1  # half of the next one
    mask[..., 2, 2:4, 3:5] = 1  # a third of another
    mask[..., 4, 2, 3:6] = 1  # half of a last cell of 6 voxels

    cells = cells_inside(pool_to_grid(mask, (2, 2, 3)))

    expected = torch.zeros(1, 1, 3, 2, 2)
    for cell in ((0, 0, 0), (1, 0, 0), (2, 1, 1)):
        expected[(0, 0, *cell)] = 1
    assert torch.equal(cells, expected)


def test_an_item_too_thin_for_any_cell_counts_where_it_is_touched():
    mask = torch.zeros(3, 1, 4, 6, 8, dtype=torch.float64)
    mask[0, 0, 1, :5, 3] = 1
    mask[1, 0, :2] = 1

    cells = cells_inside(pool_to_grid(mask, (2, 3, 4)))

    assert cells.dtype == torch.float64
    assert cells[0, 0].nonzero().tolist() == [[0, 0, 0], [0, 1, 0]]
    assert torch.equal(cells[1, 0], torch.tensor([1.0, 0]).double().view(2, 1, 1).expand(2, 2, 2))
    assert not cells[2].any()
