# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid


def slow_pool(features, spacing, cells):
    """Mean of every cell, by slicing."""
    pooled = np.empty((*features.shape[:2], *cells))
    for cell in itertools.product(*map(range, cells)):
        voxels = tuple(slice(c * s, (c + 1) * s) for c, s in zip(cell, spacing, strict=True))
        pooled[(..., *cell)] = features[(..., *voxels)].mean((2, 3, 4))
    return pooled


@pytest.mark.parametrize(
    ("compat", "spacing", "cells"),
    [
        (False, (2, 3, 4), (4, 3, 4)),
        (True, (2, 3, 4), (3, 2, 3)),
        (False, (1, 4, 1), (7, 2, 13)),
        (False, (9, 2, 20), (1, 4, 1)),
    ],
)
def test_cells_are_means_and_the_tail_is_a_cell_unless_compat_drops_it(compat, spacing, cells):
    features = torch.randn(2, 3, 7, 8, 13)

    pooled = pool_to_grid(features, spacing, compat)

    np.testing.assert_allclose(pooled.numpy(), slow_pool(features.numpy(), spacing, cells), atol=1e-6)


def test_cells_of_one_voxel_are_the_features():
    features = torch.randn(1, 2, 4, 5, 6)

    assert torch.equal(pool_to_grid(features, (1, 1, 1)), features)
