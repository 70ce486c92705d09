# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.scratch import Scratch


def test_the_next_chunk_lies_where_the_last_one_lay():
    scratch = Scratch(torch.zeros(1, dtype=torch.float64))

    first, last = scratch((2, 3, 5)), scratch((4, 3))

    assert first.dtype == torch.float64
    assert (first.shape, last.shape) == ((2, 3, 5), (4, 3))
    assert first.data_ptr() == last.data_ptr()


def test_a_larger_chunk_gets_larger_memory():
    scratch = Scratch(torch.zeros(1))
    scratch((2, 3)).fill_(1)

    larger = scratch((5, 7)).fill_(2)

    assert larger.is_contiguous()
    assert scratch((2, 3)).data_ptr() == larger.data_ptr()
