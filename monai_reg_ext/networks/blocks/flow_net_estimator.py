# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution
from torch import nn

from monai_reg_ext.networks.blocks.window_estimator import WindowEstimator
from monai_reg_ext.networks.layers.displacement_distribution import field_on_cells

__all__ = ["FlowNetEstimator"]


class FlowNetEstimator(WindowEstimator):
    """A convolutional network that reads displacements off the costs: the baseline that learns what others derive.

    The costs of all displacements are the channels of five convolutions over the control points, each but the last
    with batch norm and PReLU. With 15 displacements along each axis these have 2 million weights.

    Args:
        hidden: channels between the convolutions, of which the first looks at single points and the others at 3x3x3.
        window: arguments of :py:class:`WindowEstimator`.

    Shape:
        - fixed, moving: ``(B, F, i, j, k)`` features on the grid of :py:meth:`spacing`.
        - fixed_mask, moving_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1.
        - output: coarse_ddf ``(B, 3, i, j, k)`` in cells, linear between the control points. No probabilities.

    Raises:
        ValueError: when the search window is larger than the image.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 3, after Dosovitskiy et al., "FlowNet: Learning optical flow with
    convolutional networks", ICCV 2015.
    """

    def __init__(self, hidden: Sequence[int] = (256, 128, 64, 32), **window: object) -> None:
        super().__init__(**window)
        displacements = self.labels[0] * self.labels[1] * self.labels[2]
        widths = [displacements, *hidden]
        layers = [
            Convolution(3, before, after, 1, 1 if number == 0 else 3, "NA", "PRELU", "BATCH", bias=False)
            for number, (before, after) in enumerate(pairwise(widths))
        ]
        self.convolutions = nn.Sequential(*layers, nn.Conv3d(widths[-1], 3, 3, padding=1))

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        grid = self.search_grid(fixed)
        cost = self.cost(fixed, moving, grid, fixed_mask, moving_mask)
        in_steps = self.convolutions(cost.flatten(1, 3))
        return field_on_cells(in_steps * grid.step.view(3, 1, 1, 1), grid, fixed.shape[2:])
