# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.layers.box_filter import box_filter

__all__ = ["LocalNormalization"]


class LocalNormalization(FeatureBlock):
    r"""Intensities with local mean 0 and local standard deviation 1, a feature for two scans of one modality.

    The squared difference of two such features is :math:`2 (1 - \text{NCC})` of their windows, so that features in the
    least-squares sense become local normalised cross correlation. Unlike MIND it knows which side of an edge is the
    brighter one; put both side by side with :py:class:`FeatureConcat`.

    Args:
        width: extent of the window in voxels, odd.
        weight: factor of the feature; its square is the weight in a sum of squared differences.
        floor: smallest standard deviation, as a fraction of the image's own; quietens air.

    Shape:
        - input: ``(B, 1, I, J, K)``.
        - output: ``(B, 1, I, J, K)`` float32, between ``-3 * weight`` and ``3 * weight``. A constant image gives zeros.
    """

    def __init__(self, width: int = 7, weight: float = 1.0, floor: float = 0.05) -> None:
        super().__init__()
        self.width = width
        self.weight = weight
        self.floor = floor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # around the image's mean the two moments do not cancel each other
        image = image.float() - image.float().mean((2, 3, 4), keepdim=True)
        mean = box_filter(image, (self.width,))
        variance = box_filter(image.square(), (self.width,)) - mean.square()
        least = self.floor * image.square().mean((2, 3, 4), keepdim=True).sqrt()
        deviation = variance.clamp(min=0).sqrt().maximum(least.clamp(min=torch.finfo(torch.float32).tiny))
        return self.weight * ((image - mean) / deviation).clamp(-3, 3)
