# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from monai.utils import optional_import

from monai_reg_ext.transforms import SpatialDisplacement

_, has_fire = optional_import("fire")
FIXED = torch.tensor([[0.0, -2, 0, 20], [1.5, 0, 0, -8], [0, 0, 3, 5], [0, 0, 0, 1]], dtype=torch.float64)
MOVING = torch.diag(torch.tensor([-1.0, 2.5, 2.0, 1.0], dtype=torch.float64))
MOVING[:3, 3] = torch.tensor([22.0, -12, 2])


@pytest.fixture
def script(monkeypatch, bundles_dir):
    if not has_fire:
        pytest.skip("fire is not installed")
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    return import_module("inverse")


def shift(affine: torch.Tensor, size: tuple[int, ...], shift_mm: tuple[float, ...]) -> SpatialDisplacement:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(shift_mm)
    return SpatialDisplacement.from_chain([matrix], affine, size)


def test_the_residual_counts_voxels_of_the_field_and_only_places_that_come_from_the_fixed_image(script):
    field = shift(FIXED, (11, 9, 8), (2.0, -1.0, 3.0))
    inverse = shift(MOVING, (30, 12, 14), (-2.0, 1.0, -3.0 + 1.5))  # misses by half a voxel of 3 mm

    residual = script._residual(field, inverse)

    assert 100 < len(residual) < 30 * 12 * 14
    torch.testing.assert_close(residual, torch.full_like(residual, 0.5), rtol=0, atol=1e-4)


def test_a_field_is_inverted_onto_the_moving_grid_and_measured(script):
    field = shift(FIXED, (11, 9, 8), (2.0, -1.0, 3.0))

    inversion = script._invert(field, MOVING, (30, 12, 14))

    assert inversion.folded == 0
    assert inversion.mean <= inversion.quantile <= inversion.worst < 1e-4


def test_folded_fields_have_a_row_of_their_own(script):
    fields = [script.Inversion(0, 0.01, 0.1, 0.2, 1.0), script.Inversion(7, 0.5, 1.0, 2.0, 3.0)]
    fields.append(script.Inversion(0, 0.03, 0.05, 0.4, 2.0))

    assert script._row("T", fields, False) == "| T | no folding | 2 of 3 | 0.02 | 0.03 | 0.1 | 0.4 | 1.50 |"
    assert script._row("T", fields, True) == "| T | folded, 7 to 7 voxels | 1 of 3 | 0.5 | 0.5 | 1 | 2 | 3.00 |"
    assert script._row("T", fields[:1], True) == ""
