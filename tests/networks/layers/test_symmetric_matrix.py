# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS, entries_of, matrices_of


def test_the_entries_are_the_upper_triangle_row_by_row():
    entries = torch.arange(6.0).view(1, 6)

    assert matrices_of(entries)[0].tolist() == [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
    assert [(row, column) for row, column in zip(ROWS, COLUMNS, strict=True)] == [
        (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2),
    ]  # fmt: skip


def test_entries_of_matrices_lead_back():
    entries = torch.randn(2, 6, 3, 5, 4)

    assert matrices_of(entries).shape == (2, 3, 3, 3, 5, 4)
    assert torch.equal(entries_of(matrices_of(entries)), entries)
