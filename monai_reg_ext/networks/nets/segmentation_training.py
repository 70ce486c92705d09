# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

from monai_reg_ext.networks.layers.segmented_registration import SegmentedRegistration
from monai_reg_ext.networks.nets.registration_net import RegistrationNet

__all__ = ["SegmentationTraining"]


class SegmentationTraining(nn.Module):
    """A registration network while its features also learn to segment.

    A single 1x1x1 convolution reads the classes off the features that the estimator compares. Weights are those of the
    network that is given: save that one, the convolution is of no use afterwards.

    Args:
        net: what is trained, of one pass and one direction.
        features: channels of the network's features.
        classes: number of classes, background included.

    Shape:
        - image, moving_mask, fixed_mask: see :py:class:`RegistrationNet`.
        - output: in training mode a :py:class:`SegmentedRegistration`, in evaluation mode what the network gives.

    Raises:
        ValueError: when the network has several passes or registers in both directions.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 3 (FlowNet-C, which does not learn without).
    """

    def __init__(self, net: RegistrationNet, features: int, classes: int) -> None:
        super().__init__()
        if net.passes > 1 or net.symmetric:
            raise ValueError(
                f"SegmentationTraining needs a network of one pass and one direction, got passes={net.passes}, "
                f"symmetric={net.symmetric}. Train it so; more passes may be taken at inference."
            )
        self.net = net
        self.classes = nn.Conv3d(features, classes, 1)
        nn.init.dirac_(self.classes.weight)  # features may be classes already

    def forward(
        self, image: torch.Tensor, moving_mask: torch.Tensor | None = None, fixed_mask: torch.Tensor | None = None
    ) -> SegmentedRegistration | torch.Tensor:
        if not self.training:
            return self.net(image, moving_mask, fixed_mask)
        moving, fixed = image.chunk(2, dim=1)
        sides = self.net._sides(moving, fixed, moving_mask, fixed_mask)
        first, *later = self.net._views(*sides, [self.net.estimator, *self.net.refiners])
        if self.net.probabilistic_training:
            found = self.net._distribution(first)
        else:
            found = self.net._registered([first, *later], self.net.estimator, fixed.shape[2:])
        classes = torch.stack([self.classes(features) for features in (first.moving, first.fixed)], 1)
        return SegmentedRegistration(found, classes, first.spacing)
