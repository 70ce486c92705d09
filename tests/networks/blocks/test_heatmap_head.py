# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.blocks import HeatmapHead


def test_it_has_as_many_weights_as_published():
    assert sum(weight.numel() for weight in HeatmapHead().parameters()) == 462_417


def test_every_point_is_read_by_itself():
    head, features = HeatmapHead(5, labels=4), torch.rand(3, 5)

    together = head(features)

    assert together.shape == (3, 4, 4, 4)
    torch.testing.assert_close(together, torch.cat([head(one[None]) for one in features]), rtol=1e-3, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3
