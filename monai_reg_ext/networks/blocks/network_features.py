# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.layers.apply_in_box import apply_in_box, box_above_minimum

__all__ = ["NetworkFeatures"]


class NetworkFeatures(FeatureBlock):
    """What a network of any kind, MONAI's for example, says of every voxel, for images of any size.

    Args:
        network: ``(B, C, I, J, K) -> (B, F, I, J, K)`` for extents that are multiples of ``divisor``.
        divisor: images are padded with their border up to it, and what is added is taken off again.
        crop: give the network only the box in which an image is above its minimum, each image alone, so that its
            normalisation does not depend on how much padding there is. Beyond the box features are those of its border.
        probabilities: the network's channels are logits of classes, and features the square roots of their
            probabilities, whose squared differences are Hellinger's: never more than 2, whatever the classes.
        scale: factor of the features.

    Shape:
        - image: ``(B, C, I, J, K)``.
        - output: ``(B, F, I, J, K)``.
    """

    def __init__(
        self, network: nn.Module, divisor: int = 8, crop: bool = True, probabilities: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor
        self.crop = crop
        self.probabilities = probabilities
        self.scale = scale

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.crop:
            given = torch.cat([self._cropped(item) for item in image.split(1)])
        else:
            given = apply_in_box(self.network, image, divisor=self.divisor)
        # half of the logarithm of the probabilities: the root's slope is infinite where there are none
        return self.scale * ((given.log_softmax(1) / 2).exp() if self.probabilities else given)

    def _cropped(self, image: torch.Tensor) -> torch.Tensor:
        box = box_above_minimum(image)
        beyond = [
            pad
            for side, extent in zip(reversed(box), reversed(image.shape[2:]), strict=True)
            for start, stop, _ in [side.indices(extent)]
            for pad in (start, extent - stop)
        ]
        return F.pad(apply_in_box(self.network, image, box, self.divisor), beyond, mode="replicate")
