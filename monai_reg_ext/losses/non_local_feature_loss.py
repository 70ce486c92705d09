# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.loss import _Loss

from monai_reg_ext.losses.non_local_label_loss import check_pair, non_local_errors
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution
from monai_reg_ext.networks.layers.keypoint_distribution import KeypointDistribution
from monai_reg_ext.networks.layers.planar_distribution import PlanarDistribution

__all__ = ["NonLocalFeatureLoss"]


class NonLocalFeatureLoss(_Loss):
    r"""How badly the probabilities of displacements bring the features of two images together, without any labels.

    As :py:class:`NonLocalLabelLoss` with features in place of one-hot labels, by default MIND-SSC:
    :math:`\text{mean}_{c,k} \big(\sum_d P(d, k) \, M_c(k + d) - F_c(k)\big)^2`.

    Args:
        features: ``(B, 1, I, J, K) -> (B, F, I, J, K)``, computed without gradients.
        diffusion_weight: see :py:class:`NonLocalLabelLoss`; at keypoints weight of the mean squared difference from
            their nearest neighbours, in steps between displacements.

    Shape:
        - pred: distribution in voxels, see :py:class:`NonLocalLabelLoss`, or one at keypoints, as
          :py:class:`monai_reg_ext.networks.nets.KeypointTraining` with ``distribution`` gives it.
        - target: ``(B, 2, I, J, K)`` images, moving first, then fixed.
        - output: scalar.

    Raises:
        ValueError: when the shapes do not fit.

    Source: Heinrich & Hansen, "Highly accurate and memory efficient unsupervised learning-based discrete CT
    registration using 2.5D displacement search", MICCAI 2020; at keypoints that of VoxelMorph++ without supervision.
    """

    def __init__(self, features: nn.Module | None = None, diffusion_weight: float = 0.0) -> None:
        super().__init__()
        self.features = MindSSC(radius=3, dilation=3) if features is None else features
        self.diffusion_weight = diffusion_weight

    def forward(
        self, pred: DisplacementDistribution | PlanarDistribution | KeypointDistribution, target: torch.Tensor
    ) -> torch.Tensor:
        check_pair(pred, target, "images")
        with torch.no_grad():
            moving, fixed = (self.features(image) for image in target.split(1, dim=1))
        loss = non_local_errors(pred, moving, fixed).mean()
        return loss + self.diffusion_weight * pred.roughness() if self.diffusion_weight else loss
