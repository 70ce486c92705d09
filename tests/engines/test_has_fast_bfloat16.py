# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.engines import has_fast_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx2": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_has_it_if_it_computes_with_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    assert has_fast_bfloat16("cpu") is expected
    assert has_fast_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize("expected", [True, False])
def test_a_gpu_is_asked(monkeypatch, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: expected)

    assert has_fast_bfloat16("cuda:0") is expected


def test_other_devices_are_not_trusted_with_it():
    assert has_fast_bfloat16("meta") is False
