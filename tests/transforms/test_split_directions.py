# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.transforms import SplitDirectionsd


def test_six_channels_are_the_field_and_then_the_one_of_the_opposite_direction():
    both = torch.rand(6, 4, 5, 3)

    out = SplitDirectionsd(keys="pred")({"pred": both, "pair": "a"})

    assert torch.equal(out["pred"], both[:3])
    assert torch.equal(out["pred_backward"], both[3:])
    assert out["pair"] == "a"


def test_a_single_field_passes():
    field = torch.rand(3, 4, 5, 6)

    out = SplitDirectionsd(keys="pred")({"pred": field})

    assert out == {"pred": field}
