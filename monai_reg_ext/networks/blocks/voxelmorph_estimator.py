# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import VoxelMorph, VoxelMorphUNet
from monai.utils import ensure_tuple_rep
from torch import nn

__all__ = ["VoxelMorphEstimator"]


class VoxelMorphEstimator(nn.Module):
    """Plain VoxelMorph, MONAI's own network: both sides in, a velocity or displacement at every cell out.

    The baseline beside the others of this package. At first it gives next to no displacement.

    Args:
        channels: of the features on each side; 1 for intensities, which VoxelMorph wants between 0 and 1.
        grid_spacing: voxels per cell, one number or one per axis.
        integration_steps: of the velocities, by scaling and squaring; 0 takes them for displacements.
        unet_channels: channels of the U-Net's halves on each of its grids, in pairs, see
            :py:class:`monai.networks.nets.VoxelMorphUNet`.
        unet_out_channels: what the U-Net gives.
        final_channels: of the convolutions behind it.

    Shape:
        - fixed, moving: ``(B, channels, i, j, k)`` on the grid of :py:meth:`spacing`.
        - fixed_mask, moving_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1. What lies outside is
          0 to the network.
        - output: coarse_ddf ``(B, 3, i, j, k)`` in cells.

    Source: Balakrishnan et al., "VoxelMorph: a learning framework for deformable medical image registration", IEEE TMI
    2019; Dalca et al., "Unsupervised learning of probabilistic diffeomorphic registration", 2019.
    """

    def __init__(
        self,
        channels: int = 1,
        grid_spacing: int | Sequence[int] = 1,
        integration_steps: int = 7,
        unet_channels: Sequence[int] = (16, 32, 32, 32, 32, 32),
        unet_out_channels: int = 32,
        final_channels: Sequence[int] = (16, 16),
    ) -> None:
        super().__init__()
        self.grid_spacing = ensure_tuple_rep(grid_spacing, 3)
        self.multiple = 2 ** (len(unet_channels) // 2)
        backbone = VoxelMorphUNet(3, 2 * channels, unet_out_channels, tuple(unet_channels), tuple(final_channels))
        self.network = VoxelMorph(backbone, integration_steps)
        # as the authors' network begins
        last = backbone.net[-1].final_conv_out.conv
        nn.init.normal_(last.weight, std=1e-5)
        nn.init.zeros_(last.bias)

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        return self.grid_spacing

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        sides = [side if mask is None else side * mask for side, mask in ((moving, moving_mask), (fixed, fixed_mask))]
        size = fixed.shape[2:]
        behind = [end for extent in reversed(size) for end in (0, -extent % self.multiple)]
        _, ddf = self.network(*(F.pad(side, behind, mode="replicate") for side in sides))
        return ddf[(..., *(slice(extent) for extent in size))]
