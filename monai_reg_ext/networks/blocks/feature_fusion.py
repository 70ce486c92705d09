# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock, as_feature_block

__all__ = ["FeatureFusion"]


class FeatureFusion(FeatureBlock):
    """A small network that learns which of several features to trust, cell by cell.

    Pointwise convolutions over the pooled features, each but the last with instance norm and ReLU. Both images go
    through the same weights, so that equal anatomy gives equal features.

    Args:
        features: what is fused, for example MIND-SSC and semantic features side by side.
        in_channels: how many channels ``features`` gives.
        hidden: channels of the layers between.
        out_channels: channels of the result.

    Shape:
        - image: as ``features`` takes it.
        - output: ``(B, out_channels, i, j, k)`` on every grid asked for.

    Raises:
        ValueError: when ``features`` gives another number of channels.

    Source: Siebert & Heinrich, "Learn to fuse input features for large-deformation registration with differentiable
    convex-discrete optimisation", WBIR 2022, section 2.
    """

    def __init__(
        self, features: nn.Module, in_channels: int, hidden: Sequence[int] = (32, 32), out_channels: int = 15
    ) -> None:
        super().__init__()
        self.features = features
        self.in_channels = in_channels
        widths = [in_channels, *hidden]
        layers = [
            Convolution(3, before, after, kernel_size=1, act="RELU", norm="INSTANCE", adn_ordering="NA")
            for before, after in pairwise(widths)
        ]
        self.fusion = nn.Sequential(*layers, nn.Conv3d(widths[-1], out_channels, kernel_size=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self._fused(self.features(image))

    def pooled(
        self, image: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> list[torch.Tensor]:
        """Fused features of one image on control grids; the fusion sees pooled features, not single voxels."""
        return [self._fused(grid) for grid in as_feature_block(self.features).pooled(image, spacings, compat)]

    def pooled_pair(
        self, fixed: torch.Tensor, moving: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        of_fixed, of_moving = as_feature_block(self.features).pooled_pair(fixed, moving, spacings, compat)
        return [self._fused(grid) for grid in of_fixed], [self._fused(grid) for grid in of_moving]

    def warped(self, image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        return as_feature_block(self.features).warped(image, ddf)

    def _fused(self, features: torch.Tensor) -> torch.Tensor:
        if features.shape[1] != self.in_channels:
            raise ValueError(
                f"FeatureFusion was made for {self.in_channels} channels, its features have {features.shape[1]}. Give "
                "in_channels as the features have them, and weights that were trained with these features."
            )
        return self.fusion(features)
