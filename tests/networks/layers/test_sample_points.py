# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.sample_points import sample_points


def test_it_interpolates_linearly_at_every_point_of_every_item():
    i, j, k = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), torch.arange(5.0), indexing="ij")
    ramps = torch.stack([2 * i - j, 3 * k + i]).expand(2, -1, -1, -1, -1) * torch.tensor([1.0, -1.0]).view(
        2, 1, 1, 1, 1
    )
    points = torch.tensor([3.0, 5.0, 4.0]) * torch.rand(2, 9, 3)

    found = sample_points(ramps, points)

    x, y, z = points.unbind(-1)
    expected = torch.stack([2 * x - y, 3 * z + x], -1) * torch.tensor([1.0, -1.0]).view(2, 1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_mode_and_what_lies_outside_are_as_asked():
    volume = torch.arange(1.0, 61).view(1, 1, 3, 4, 5)
    points = torch.tensor([[[1.4, 2.6, 0.0], [0.0, 0.0, -1.0]]])

    assert sample_points(volume, points, "nearest", "zeros").flatten().tolist() == [volume[0, 0, 1, 3, 0], 0]
    assert sample_points(volume, points).flatten()[1].item() == pytest.approx(1, rel=1e-4)
