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


def test_nine_channels_are_the_field_and_its_covariance():
    both = torch.rand(9, 4, 5, 3)

    out = SplitDirectionsd(keys="pred")({"pred": both})

    assert out.keys() == {"pred", "pred_covariance"}
    assert torch.equal(out["pred"], both[:3])
    assert torch.equal(out["pred_covariance"], both[3:])


def test_twelve_channels_are_both_fields_and_the_covariance_of_the_first():
    everything = torch.rand(12, 4, 5, 3)

    out = SplitDirectionsd(keys="pred")({"pred": everything})

    assert out.keys() == {"pred", "pred_backward", "pred_covariance"}
    assert torch.equal(torch.cat([out["pred"], out["pred_backward"], out["pred_covariance"]]), everything)
    assert [len(part) for part in out.values()] == [3, 3, 6]
