# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock

__all__ = ["SegmentationFeatures"]


class SegmentationFeatures(FeatureBlock):
    """What a trained segmentation network sees in an image: the probability of every class.

    The network is frozen: it stays in evaluation mode, and nothing is trained through it.

    Args:
        network: segmentation network ``(B, 1, I, J, K) -> (B, L, I, J, K)`` logits.
        divisor: extents must be multiples of this for the network; images are padded with their border.
        crop: give the network only the box in which an image is above its minimum, as nnU-Net does; beyond it
            everything is background (class 0).

    Shape:
        - image: ``(B, 1, I, J, K)``, intensities as in the network's training.
        - output: ``(B, L, I, J, K)`` float32 probabilities.
    """

    def __init__(self, network: nn.Module, divisor: int = 8, crop: bool = True) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.divisor = divisor
        self.crop = crop
        self.train(self.training)

    def train(self, mode: bool = True) -> SegmentationFeatures:
        """Training mode for everything around; the network itself stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._probabilities(item) for item in image.split(1)])

    def _probabilities(self, image: torch.Tensor) -> torch.Tensor:
        box = _box_above_minimum(image) if self.crop else (slice(None),) * 3
        seen = image[(..., *box)]
        size = seen.shape[2:]
        missing = [-extent % self.divisor for extent in size]
        padded = F.pad(seen, [pad for extent in reversed(missing) for pad in (0, extent)], mode="replicate")
        inside = self.network(padded)[:, :, : size[0], : size[1], : size[2]].float().softmax(1)
        probabilities = inside.new_zeros(1, inside.shape[1], *image.shape[2:])
        probabilities[:, 0] = 1
        probabilities[(..., *box)] = inside
        return probabilities


def _box_above_minimum(image: torch.Tensor) -> tuple[slice, ...]:
    above = (image > image.min())[0, 0]
    if not above.any():
        return (slice(None),) * 3
    return tuple(
        slice(int(found.min()), int(found.max()) + 1)
        for axis in range(3)
        for found in [above.any(dim=tuple({0, 1, 2} - {axis})).nonzero()]
    )
