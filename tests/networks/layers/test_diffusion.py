# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.diffusion import diffusion


def test_a_ramp_has_its_squared_slopes_a_third_for_each_component():
    ramp = torch.zeros(2, 3, 4, 5, 6)
    ramp[1, 0] = 2 * torch.arange(4.0).view(4, 1, 1)
    ramp[1, 2] = -3 * torch.arange(6.0)

    torch.testing.assert_close(diffusion(ramp), torch.tensor([0.0, (4 + 9) / 3]))


def test_along_an_axis_of_one_cell_there_is_none():
    field = torch.zeros(1, 3, 1, 4, 1)
    field[0, 1] = torch.arange(4.0).view(1, 4, 1)

    torch.testing.assert_close(diffusion(field), torch.tensor([1 / 3]))
