# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.blocks.flow_net_estimator import FlowNetEstimator
from monai_reg_ext.networks.layers.displacement_distribution import field_on_cells

SIZE = (15, 13, 17)
WINDOW = {"grid_spacing": 3, "points": (6, 5, 7), "labels": (3, 5, 2), "fraction": 0.3}


def test_it_has_two_million_weights_as_in_the_paper():
    weights = sum(weight.numel() for weight in FlowNetEstimator().parameters())

    assert 1.9e6 < weights < 2.1e6


def test_it_has_five_convolutions():
    layers = [module for module in FlowNetEstimator(**WINDOW).modules() if isinstance(module, torch.nn.Conv3d)]

    assert [layer.in_channels for layer in layers] == [30, 256, 128, 64, 32]
    assert layers[-1].out_channels == 3


def test_its_output_counts_steps_between_displacements():
    estimator = FlowNetEstimator(**WINDOW).eval()
    fixed, moving = torch.rand(2, 2, 4, *SIZE)

    coarse_ddf = estimator(fixed, moving)

    grid = estimator.search_grid(fixed)
    in_steps = estimator.convolutions(estimator.cost(fixed, moving, grid).flatten(1, 3))
    # 0.3 of half of 15, 13 and 17 cells to each side; 3, 5 and 2 displacements
    steps = torch.tensor([2.25, 1.95 / 2, 5.1]).view(3, 1, 1, 1)
    torch.testing.assert_close(coarse_ddf, field_on_cells(in_steps * steps, grid, SIZE))
    assert coarse_ddf.shape == (2, 3, *SIZE)


def test_all_its_weights_and_the_features_learn():
    estimator = FlowNetEstimator(hidden=(8, 8, 8, 8), **WINDOW)
    fixed, moving = torch.rand(2, 2, 4, *SIZE, requires_grad=True).unbind()

    loss = estimator(fixed, moving).square().sum()

    gradients = torch.autograd.grad(loss, [fixed, moving, *estimator.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
