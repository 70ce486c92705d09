# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import pytest
import torch

from monai_reg_ext.networks.layers.fill_outside import FillOutside

SIZE = (5, 4, 7)


@pytest.fixture
def mask():
    """Two items; the second has one cell inside only."""
    mask = (torch.rand(2, 1, *SIZE) > 0.7).int() * 3
    mask[1] = 0
    mask[1, 0, 4, 0, 2] = 1
    return mask


def test_every_cell_outside_takes_a_nearest_cell_inside_and_the_inside_stays(mask):
    numbers = torch.arange(140.0).view(1, 1, *SIZE).expand(2, 2, -1, -1, -1)

    filled = FillOutside(mask)(numbers)

    assert torch.equal(filled[:, 0], filled[:, 1])
    cells = list(itertools.product(*map(range, SIZE)))
    for item in range(2):
        inside = torch.tensor([cell for cell in cells if mask[(item, 0, *cell)]])
        for cell in cells:
            chosen = torch.tensor(cells[int(filled[(item, 0, *cell)])])
            assert mask[(item, 0, *chosen)]
            distances = (inside - torch.tensor(cell)).square().sum(1)
            assert (chosen - torch.tensor(cell)).square().sum() == distances.min()


def test_beyond_the_faces_of_a_box_its_border_goes_on():
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., 1:4, 2:4, 3:5] = 1
    field = torch.randn(1, 3, *SIZE)

    filled = FillOutside(mask)(field)

    i, j, k = (torch.arange(extent).clamp(*ends) for extent, ends in zip(SIZE, ((1, 3), (2, 3), (3, 4)), strict=True))
    assert torch.equal(filled, field[:, :, i[:, None, None], j[:, None], k])


@pytest.mark.parametrize("mask", [None, torch.ones(2, 1, *SIZE), torch.zeros(2, 1, *SIZE)], ids=["no", "full", "empty"])
def test_without_an_outside_or_an_inside_fields_stay_as_they_are(mask):
    field = torch.randn(2, 3, *SIZE)

    assert torch.equal(FillOutside(mask)(field), field)
    assert torch.equal(FillOutside(mask).adjoint(field), field)


def test_the_adjoint_is_the_gradient(mask):
    field = torch.randn(2, 3, *SIZE, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    fill = FillOutside(mask)

    (expected,) = torch.autograd.grad(fill(field), field, gradient)

    torch.testing.assert_close(fill.adjoint(gradient), expected)
    assert fill.adjoint(gradient)[1, :, 4, 0, 2].tolist() == pytest.approx(gradient[1].sum((1, 2, 3)).tolist())
