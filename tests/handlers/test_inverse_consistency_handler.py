# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.handlers import InverseConsistencyHandler

AFFINE = torch.tensor([[0.0, 3, 0, 5], [-2, 0, 0, 7], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)


def shift(*voxels: float) -> MetaTensor:
    return MetaTensor(torch.tensor(voxels).view(3, 1, 1, 1).expand(3, 9, 10, 11).clone(), affine=AFFINE)


def test_what_is_missing_on_the_way_back_is_counted_in_mm():
    handler = InverseConsistencyHandler()

    exact = handler.measure({"pred": shift(1, 2, -1), "pred_inverse": shift(-1, -2, 1)})
    short = handler.measure({"pred": shift(1, 2, -1), "pred_inverse": shift(-1, -1, 1)})

    assert exact == pytest.approx({"inverse_consistency_mm": 0.0}, abs=1e-6)
    assert short == pytest.approx({"inverse_consistency_mm": 3.0})  # one voxel along axis 1 is 3 mm


def test_what_the_inversion_missed_is_handed_on():
    pair = {"pred": shift(1, 2, -1), "pred_inverse": shift(-1, -2, 1), "inverse_residual_voxel": 0.25}

    assert InverseConsistencyHandler().measure(pair)["inverse_residual_voxel"] == 0.25
