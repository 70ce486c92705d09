# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS, entries_of, matrices_of
from monai_reg_ext.networks.layers.upsample_covariance import upsample_covariance
from monai_reg_ext.networks.layers.upsample_ddf import upsample_ddf

SPACING, SIZE = (2, 3, 5), (9, 13, 16)  # partial cells along every axis


def random_covariance(*size):
    factor = torch.randn(size[0], 3, 3, *size[1:])
    return entries_of(torch.einsum("bik...,bjk...->bij...", factor, factor))


@pytest.mark.parametrize("compat", [False, True])
def test_every_entry_is_interpolated_like_a_component_and_counts_the_voxels_of_its_two_axes(compat):
    cells = [extent // step if compat else -(-extent // step) for extent, step in zip(SIZE, SPACING, strict=True)]
    covariance = random_covariance(2, *cells)

    upsampled = upsample_covariance(covariance, SPACING, SIZE, compat)

    assert upsampled.shape == (2, 6, *SIZE)
    for entry, (row, column) in enumerate(zip(ROWS, COLUMNS, strict=True)):
        alone = torch.zeros(2, 3, *cells)
        alone[:, row] = covariance[:, entry]
        expected = SPACING[column] * upsample_ddf(alone, SPACING, SIZE, compat)[:, row]
        torch.testing.assert_close(upsampled[:, entry], expected)


def test_the_covariance_of_equal_errors_everywhere_is_that_of_the_same_errors_in_voxels():
    errors = torch.randn(40, 3, dtype=torch.float64)
    covariance = entries_of((errors[:, :, None] * errors[:, None]).mean(0, keepdim=True))

    upsampled = upsample_covariance(covariance.view(1, 6, 1, 1, 1).expand(1, 6, 5, 5, 4), SPACING, SIZE)

    in_voxels = errors * torch.tensor(SPACING)
    expected = entries_of((in_voxels[:, :, None] * in_voxels[:, None]).mean(0, keepdim=True))
    torch.testing.assert_close(upsampled, expected.view(1, 6, 1, 1, 1).expand(1, 6, *SIZE))


def test_covariances_stay_covariances_between_the_cells():
    upsampled = upsample_covariance(random_covariance(1, 5, 5, 4).double(), SPACING, SIZE)

    assert torch.linalg.eigvalsh(matrices_of(upsampled).movedim((1, 2), (-2, -1))).min() > -1e-9


def test_cells_that_do_not_cover_the_grid_are_refused():
    with pytest.raises(ValueError, match="do not cover the grid"):
        upsample_covariance(torch.zeros(1, 6, 4, 5, 4), SPACING, SIZE)
