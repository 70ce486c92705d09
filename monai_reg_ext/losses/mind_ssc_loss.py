# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from monai.utils import LossReduction
from torch.nn.modules.loss import _Loss

from monai_reg_ext.networks.blocks.mind_ssc import MindSSC

__all__ = ["MindSSCLoss"]


class MindSSCLoss(_Loss):
    """Dissimilarity of two images whatever their modalities: the squared difference of their MIND-SSC descriptors.

    Trains networks that register; the energy that :py:class:`monai_reg_ext.networks.blocks.AdamRefiner` minimises for
    one pair has the same data term.

    Args:
        radius: half-width of a patch, in voxels.
        dilation: distance of the patch centres from the voxel, in voxels.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over everything but the channels, which are summed.

    Shape:
        - pred, target: ``(B, 1, I, J, K)`` warped and fixed image.
        - output: scalar, or ``(B, 1, I, J, K)`` with ``"none"``.

    Raises:
        ValueError: when the shapes differ.
    """

    def __init__(self, radius: int = 1, dilation: int = 2, reduction: LossReduction | str = LossReduction.MEAN) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        self.mind_ssc = MindSSC(radius, dilation)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if pred.shape != target.shape:
            raise ValueError(f"pred and target need one shape, got {tuple(pred.shape)} and {tuple(target.shape)}.")
        loss = (self.mind_ssc(pred) - self.mind_ssc(target)).square().sum(1, keepdim=True)
        if self.reduction == LossReduction.MEAN.value:
            return loss.mean()
        return loss.sum() if self.reduction == LossReduction.SUM.value else loss
