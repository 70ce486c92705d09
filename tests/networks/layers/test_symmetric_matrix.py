# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.symmetric_matrix import (
    COLUMNS,
    ROWS,
    entries_of,
    matrices_of,
    symmetric_inverse,
    symmetric_product,
    symmetric_shape,
)


def test_the_entries_are_the_upper_triangle_row_by_row():
    entries = torch.arange(6.0).view(1, 6)

    assert matrices_of(entries)[0].tolist() == [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
    assert [(row, column) for row, column in zip(ROWS, COLUMNS, strict=True)] == [
        (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2),
    ]  # fmt: skip
    assert symmetric_shape(6) == (ROWS, COLUMNS)
    assert matrices_of(torch.arange(3.0).view(1, 3))[0].tolist() == [[0, 1], [1, 2]]


def test_entries_of_matrices_lead_back():
    entries = torch.randn(2, 6, 3, 5, 4)

    assert matrices_of(entries).shape == (2, 3, 3, 3, 5, 4)
    assert torch.equal(entries_of(matrices_of(entries)), entries)


@pytest.mark.parametrize("entries", [1, 3, 6])
def test_products_and_inverses_are_those_of_the_matrices(entries):
    columns = torch.randn(2, entries, 4, 3, 5, dtype=torch.float64)
    size = int((2 * entries) ** 0.5)
    columns[:, [row == column for row, column in zip(*symmetric_shape(entries), strict=True)]] += 6
    vectors = torch.randn(2, size, 4, 3, 5, dtype=torch.float64)

    matrices = matrices_of(columns)

    product = torch.einsum("bij...,bj...->bi...", matrices, vectors)
    torch.testing.assert_close(symmetric_product(columns, vectors), product)
    torch.testing.assert_close(symmetric_product(symmetric_inverse(columns), product), vectors)


def test_other_numbers_of_entries_are_refused():
    with pytest.raises(ValueError, match="1, 3, 6, 10"):
        matrices_of(torch.zeros(1, 5, 2))
    with pytest.raises(ValueError, match="up to 6 entries"):
        symmetric_inverse(torch.zeros(1, 10, 2))
