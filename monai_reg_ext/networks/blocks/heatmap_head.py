# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["HeatmapHead"]

_FIRST = 7


class HeatmapHead(nn.Module):
    """How probable every displacement is at a point, from the point's features alone.

    The features of a point are spread over a small volume, convolved, upsampled to the displacements and convolved
    again, with instance norm: every point is normalised by itself. 462,417 weights with 64 features.

    Args:
        in_channels: features of a point.
        labels: displacements along each axis.

    Shape:
        - input: ``(M, in_channels)``.
        - output: ``(M, labels, labels, labels)`` logits.

    Source: Heinrich & Hansen, "Voxelmorph++: going beyond the cranial vault with keypoint supervision and
    multi-channel instance optimisation", WBIR 2022.
    """

    def __init__(self, in_channels: int = 64, labels: int = 11) -> None:
        super().__init__()
        self.labels = labels
        self.spread = nn.Sequential(
            nn.ConvTranspose3d(in_channels, 16, _FIRST),
            *_normalised(16),
            nn.Conv3d(16, 32, 3, padding=1),
            *_normalised(32),
            nn.Conv3d(32, 32, 3, padding=1),
        )
        self.read = nn.Sequential(
            nn.Conv3d(32, 32, 3, padding=1),
            *_normalised(32),
            nn.Conv3d(32, 32, 3, padding=1),
            *_normalised(32),
            nn.Conv3d(32, 16, 3, padding=1),
            *_normalised(16),
            nn.Conv3d(16, 1, 3, padding=1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        spread = self.spread(features[..., None, None, None])
        return self.read(F.interpolate(spread, size=[self.labels] * 3, mode="trilinear"))[:, 0]


def _normalised(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm3d(channels), nn.ReLU(inplace=True)
