# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.compat import reference_stretch


def test_each_axis_is_stretched_by_its_own_size():
    stretch = reference_stretch(torch.zeros(2, 3, 5, 11, 101, dtype=torch.float64))

    assert stretch.shape == (1, 3, 1, 1, 1)
    assert stretch.flatten().tolist() == pytest.approx([5 / 4, 11 / 10, 101 / 100])


def test_a_single_voxel_is_not_divided_by_zero():
    assert reference_stretch(torch.zeros(1, 2, 4, 1)).flatten().tolist() == pytest.approx([4 / 3, 1])
