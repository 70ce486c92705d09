# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.handlers import TREHandler


def test_the_affine_of_the_field_leads_to_mm_and_the_interpolation_is_passed_on():
    # one displaced voxel plane: half way to it, a line gives 1/2 and the cubic spline more
    field = torch.zeros(3, 9, 10, 11)
    field[0, 4] = 1.0
    affine = torch.tensor([[0.0, 3, 0, 5], [-2, 0, 0, 7], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    fixed_points = torch.tensor([[3.5, 4, 5, 1]], dtype=torch.float64) @ affine.T[:, :3]
    pair = {"pred": MetaTensor(field, affine=affine), "fixed_points": fixed_points, "moving_points": fixed_points - 1}

    linear = TREHandler().measure(pair)
    cubic = TREHandler(interpolation="cubic").measure(pair)

    # half a voxel along axis 0 is -1 mm along world axis 1: (1, 1 - 1, 1) remains
    assert linear == pytest.approx({"tre_mm": 2**0.5, "tre_mm_before": 3**0.5})
    assert cubic["tre_mm"] != pytest.approx(linear["tre_mm"], abs=1e-3)


def test_snapped_errors_are_measured_on_demand_on_the_moving_voxels():
    affine, moving_affine = torch.diag(torch.tensor([2.0, 3, 1, 1])), torch.diag(torch.tensor([5.0, 5, 5, 1]))
    points = torch.tensor([[6.0, 9, 4]], dtype=torch.float64)
    moving = MetaTensor(torch.zeros(1, 4, 4, 4), affine=moving_affine)
    pair = {"pred": MetaTensor(torch.zeros(3, 9, 10, 11), affine=affine), "fixed_points": points}
    pair |= {"moving_points": points, "moving": moving}

    values = TREHandler(snapped=True).measure(pair)

    # the nearest centres are 5, 10 and 5 mm
    assert values == pytest.approx({"tre_mm": 0, "tre_mm_before": 0, "tre_mm_snapped": 3**0.5})
    assert "tre_mm_snapped" not in TREHandler().measure(pair)
