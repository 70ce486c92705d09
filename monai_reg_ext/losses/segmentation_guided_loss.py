# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.modules.loss import _Loss

from monai_reg_ext.losses.label_channels import one_hot_labels
from monai_reg_ext.networks.layers.pool_to_grid import grid_size, pool_to_grid
from monai_reg_ext.networks.layers.segmented_registration import SegmentedRegistration

__all__ = ["SegmentationGuidedLoss"]


class SegmentationGuidedLoss(_Loss):
    """A loss of registration, and how badly its features tell the classes of both images.

    Args:
        loss: of what the network found and the label maps.
        labels: the classes, background (0) included; other values are refused.
        weight: of the segmentation, MONAI's Dice and cross-entropy loss of the shares of classes in each cell.

    Shape:
        - pred: a :py:class:`monai_reg_ext.networks.layers.SegmentedRegistration`.
        - target: ``(B, 2, I, J, K)`` label maps, moving first, then fixed, as the network sees the images.
        - output: scalar.

    Raises:
        TypeError: when the network gives no classes.
        ValueError: when classes and label maps are of different images, or a label map holds another class.
    """

    def __init__(self, loss: nn.Module, labels: Sequence[int], weight: float = 1.0) -> None:
        super().__init__()
        self.loss = loss
        self.labels = tuple(labels)
        self.weight = weight
        self.segmentation = DiceCELoss(include_background=False, softmax=True)

    def forward(self, pred: SegmentedRegistration, target: torch.Tensor) -> torch.Tensor:
        if not isinstance(pred, SegmentedRegistration):
            raise TypeError(
                f"SegmentationGuidedLoss needs classes beside the registration, got {type(pred).__name__}. Train with "
                "SegmentationTraining around the network, in training mode."
            )
        logits = pred.classes.flatten(0, 1)
        one_hot = one_hot_labels(target.flatten(0, 1).unsqueeze(1), self.labels)
        if grid_size(one_hot.shape[2:], pred.spacing) != tuple(logits.shape[2:]):
            raise ValueError(
                f"SegmentationGuidedLoss needs label maps of the images that were segmented, got {tuple(target.shape)} "
                f"for classes on {tuple(logits.shape[2:])} cells of {pred.spacing} voxels."
            )
        segmentation = self.segmentation(logits, pool_to_grid(one_hot, pred.spacing))
        return self.loss(pred.registration, target) + self.weight * segmentation
