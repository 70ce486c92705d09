# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.sample_axes import sample_axes
from monai_reg_ext.networks.layers.warp import sample

POSITIONS = [torch.tensor([-2.0, 0.25, 3.5, 9.0]), torch.tensor([4.0, 1.75]), torch.tensor([0.0, 7.1, 2.5])]


def test_it_is_trilinear_interpolation_with_the_border_repeated():
    volume = torch.rand(2, 3, 6, 5, 7)
    mesh = torch.stack(torch.meshgrid(POSITIONS, indexing="ij")).expand(2, -1, -1, -1, -1)

    torch.testing.assert_close(sample_axes(volume, POSITIONS), sample(volume, mesh))


def test_an_axis_of_one_voxel_is_the_same_everywhere():
    volume = torch.rand(1, 2, 1, 5, 7)

    samples = sample_axes(volume, [torch.tensor([-1.0, 0.0, 2.5]), torch.arange(5.0), torch.arange(7.0)])

    torch.testing.assert_close(samples, volume.expand(-1, -1, 3, -1, -1))


def test_half_precision_is_interpolated_in_float32():
    volume = torch.rand(1, 2, 6, 5, 7).half()

    samples = sample_axes(volume, POSITIONS)

    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples, sample_axes(volume.float(), POSITIONS))


def test_its_gradient_is_right():
    volume = torch.rand(1, 2, 4, 3, 5, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda volume: sample_axes(volume, POSITIONS), volume)
