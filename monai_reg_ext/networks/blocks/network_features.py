# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock

__all__ = ["NetworkFeatures"]


class NetworkFeatures(FeatureBlock):
    """What a network of any kind, MONAI's for example, says of every voxel, for images of any size.

    Args:
        network: ``(B, C, I, J, K) -> (B, F, I, J, K)`` for extents that are multiples of ``divisor``.
        divisor: images are padded with their border up to it, and what is added is taken off again.

    Shape:
        - image: ``(B, C, I, J, K)``.
        - output: ``(B, F, I, J, K)``.
    """

    def __init__(self, network: nn.Module, divisor: int = 8) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        size = image.shape[2:]
        missing = [-extent % self.divisor for extent in size]
        padded = F.pad(image, [pad for extent in reversed(missing) for pad in (0, extent)], mode="replicate")
        return self.network(padded)[:, :, : size[0], : size[1], : size[2]]
