# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_reg_ext.networks.layers.apply_in_box import apply_in_box, box_above_minimum

__all__ = ["SegmentationChannel"]


class SegmentationChannel(nn.Module):
    """Puts what a trained segmentation network makes of an image behind it, as ``preparation`` of a registration.

    The network is frozen: it stays in evaluation mode, and nothing is trained through it.

    Args:
        network: segmentation network ``(B, 1, I, J, K) -> (B, L, I, J, K)``; the largest channel wins.
        labels: the classes of its channels, background first.
        keep_image: whether the image stays before the label map.
        divisor: extents must be multiples of this for the network; images are padded with their border.
        crop: give the network only the box in which an image is above its minimum, as nnU-Net does; beyond it
            everything is background.

    Shape:
        - image: ``(B, 1, I, J, K)``, intensities as in the network's training.
        - output: ``(B, 2, I, J, K)``, image and label map, or the label map alone ``(B, 1, I, J, K)``.

    Raises:
        ValueError: when the network gives another number of channels than there are labels.
    """

    def __init__(
        self, network: nn.Module, labels: Sequence[int], keep_image: bool = True, divisor: int = 8, crop: bool = True
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.labels = tuple(labels)
        self.keep_image = keep_image
        self.divisor = divisor
        self.crop = crop
        self.train(self.training)

    def train(self, mode: bool = True) -> SegmentationChannel:
        """Training mode for everything around; the network itself stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        labels = torch.tensor(self.labels, dtype=image.dtype, device=image.device)
        segmented = torch.cat([labels[self._channel(item)] for item in image.split(1)])
        return torch.cat([image, segmented], 1) if self.keep_image else segmented

    def _channel(self, image: torch.Tensor) -> torch.Tensor:
        box = box_above_minimum(image) if self.crop else (slice(None),) * 3
        logits = apply_in_box(self.network, image, box, self.divisor)
        if logits.shape[1] != len(self.labels):
            raise ValueError(
                f"the segmentation network gives {logits.shape[1]} channels for {len(self.labels)} labels "
                f"{list(self.labels)}. Name one label per channel, background first."
            )
        channel = torch.zeros_like(image, dtype=torch.int64)
        channel[(..., *box)] = logits.argmax(1, keepdim=True)
        return channel
