# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.handlers import Learn2RegHD95Handler


def test_only_the_labels_asked_for_count_and_distances_are_in_voxels():
    fixed, warped = torch.zeros(2, 1, 12, 9, 10, dtype=torch.int32)
    fixed[0, 2:6, 2:6, 2:6], warped[0, 4:8, 2:6, 2:6] = 1, 1
    fixed[0, 10:, :2, :2] = warped[0, 10:, :2, :2] = 2
    geometry = torch.diag(torch.tensor([3.0, 1.0, 2.0, 1.0]))
    labels = {"warped_label": warped, "fixed_label": fixed, "moving_label": fixed}
    pair = {key: MetaTensor(label, affine=geometry) for key, label in labels.items()}

    assert Learn2RegHD95Handler().measure(pair) == pytest.approx({"hd95": 1.0})
    assert Learn2RegHD95Handler(labels=[1]).measure(pair) == pytest.approx({"hd95": 2.0})
