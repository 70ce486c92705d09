# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.layers.offset_differences import offset_differences
from monai_reg_ext.networks.layers.pool_to_grid import grid_size

__all__ = ["ObeliskFeatures"]

_EDGE_CHANNELS = 4


class ObeliskFeatures(FeatureBlock):
    """Learned features that look far around: differences of edges at pairs of learned places, then small convolutions.

    An image is smoothed and filtered to four kinds of edges on a coarse grid; each feature position compares them at
    ``2 * channels`` pairs of offsets, the same everywhere. Features exist where they are asked for: on a control grid
    they are those of the cells' centres, not means over the cells.

    Args:
        channels: number of features.
        in_channels: channels of the image.
        pool: voxels to which the image is averaged before the edges are taken; 1 for small images.
        stride: of the edges' convolution; the reference's is 2. With 1 edges of small images keep their places.
        deviation: standard deviation of the initial offsets in voxels.
        compat: the reference's coordinates: offsets are fractions of half the image, in the order of axes 2, 1, 0, with
            an initial deviation of 0.05; positions stretch over the image from corner to corner; and zeros count in
            the average at the image's border.

    Shape:
        - image: ``(B, in_channels, I, J, K)``.
        - output: ``(B, channels, i, j, k)`` on every grid asked for.

    Source: Heinrich, Oktay & Bouteldja, "OBELISK-Net: Fewer layers to solve 3D multi-organ segmentation with sparse
    deformable convolutions", Medical Image Analysis 2019; with these layers in Heinrich, "Closing the Gap between Deep
    and Conventional Image Registration using Probabilistic Dense Displacement Networks", MICCAI 2019.
    """

    def __init__(
        self,
        channels: int = 16,
        in_channels: int = 1,
        pool: int = 2,
        stride: int = 2,
        deviation: float = 4.0,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.stride = stride
        self.compat = compat
        pairs, wide, narrow = 2 * channels, 8 * channels, 4 * channels
        self.offsets = nn.Parameter(torch.randn(2, pairs, 3) * (0.05 if compat else deviation))
        self.edges = _layer(in_channels, _EDGE_CHANNELS, 5, stride)
        self.mixing = nn.Sequential(_layer(wide, narrow, 1), _layer(narrow, narrow, 3))
        self.head = nn.Conv3d(narrow, channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pooled(image, [(1, 1, 1)])[0]

    def pooled(
        self, image: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> list[torch.Tensor]:
        """Features at the centres of the cells of control grids."""
        compat = compat or self.compat
        edges = self.edges(self._smoothed(image))
        grids = (grid_size(image.shape[2:], spacing, compat) for spacing in spacings)
        return [
            self.head(self.mixing(self._differences(edges, image.shape[2:], spacing, cells)))
            for spacing, cells in zip(spacings, grids, strict=True)
        ]

    def _smoothed(self, image: torch.Tensor) -> torch.Tensor:
        if self.pool == 1:
            return image
        width = 2 * (self.pool // 2) + 1
        return F.avg_pool3d(image, width, self.pool, width // 2, count_include_pad=self.compat)

    def _differences(
        self, edges: torch.Tensor, size: Sequence[int], spacing: Sequence[int], cells: Sequence[int]
    ) -> torch.Tensor:
        """``(B, 4 * pairs, *cells)`` differences of edges at pairs of offsets, pairs fastest."""
        axes = zip(edges.shape[2:], size, spacing, cells, strict=True)
        return offset_differences(edges, [self._places(axis, *extents) for axis, extents in enumerate(axes)])

    def _places(self, axis: int, edges: int, size: int, spacing: int, cells: int) -> torch.Tensor:
        """``(2, pairs, cells)`` where along an axis edges are compared, in voxels of the grid of edges."""
        cell = torch.arange(cells, device=self.offsets.device, dtype=self.offsets.dtype)
        if self.compat:
            offset = self.offsets[..., 2 - axis] * (edges - 1) / 2
            centre = cell * (edges - 1) / max(cells - 1, 1)
        else:
            voxels = self.stride * self.pool
            offset = self.offsets[..., axis] / voxels
            centre = (cell * spacing + (spacing - 1) / 2) / voxels
        return offset[..., None] + centre


def _layer(before: int, after: int, kernel_size: int, stride: int = 1) -> Convolution:
    """Convolution, batch norm, ReLU."""
    return Convolution(3, before, after, stride, kernel_size, "NA", "RELU", "BATCH", bias=False)
