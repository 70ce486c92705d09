# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.modules.loss import _Loss

from monai_reg_ext.losses.label_channels import label_weights, one_hot_labels
from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution
from monai_reg_ext.networks.layers.keypoint_distribution import KeypointDistribution
from monai_reg_ext.networks.layers.planar_distribution import PlanarDistribution

__all__ = ["NonLocalLabelLoss"]


class NonLocalLabelLoss(_Loss):
    r"""How badly the probabilities of displacements bring the labels of two images together.

    Every control point *k* expects the moving labels that all its displacements lead to; that is compared with the
    fixed ones: :math:`\text{mean}_{l,k} \, w_l \big(\sum_d P(d, k) \, m_l(k + d) - f_l(k)\big)^2`, with :math:`w_l`
    proportional to :math:`n_l^{-\text{exponent}}`, :math:`n_l` the voxels of label *l* in both images, and mean 1 over
    the labels that occur there. The labels of all displacements are never laid out.

    Args:
        labels: the classes, background (0) included; other values are refused.
        exponent: how strongly rare labels count.
        background: weight of class 0 in place of its own; ``None`` keeps that.
        diffusion_weight: weight of the :py:func:`diffusion` of the expected displacements on the control grid, in
            steps between displacements. The paper's 1.5 for displacements in halves of the image, 15 of which reach
            0.4, is 0.005.

    Shape:
        - pred: distribution in voxels, as a :py:class:`monai_reg_ext.networks.nets.RegistrationNet` with
          ``probabilistic_training`` gives it.
        - target: ``(B, 2, I, J, K)`` label maps, moving first, then fixed, as the network sees the images.
        - output: scalar.

    Raises:
        ValueError: when the shapes do not fit, or a label map holds another class.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 2.
    """

    def __init__(
        self,
        labels: Sequence[int],
        exponent: float = 0.5,
        background: float | None = 0.15,
        diffusion_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.exponent = exponent
        self.background = background
        self.diffusion_weight = diffusion_weight

    def forward(self, pred: DisplacementDistribution | PlanarDistribution, target: torch.Tensor) -> torch.Tensor:
        check_pair(pred, target, "label maps")
        moving, fixed = (one_hot_labels(label, self.labels) for label in target.split(1, dim=1))
        weights = label_weights(moving, fixed, self.exponent, self.background)
        loss = (weights * non_local_errors(pred, moving, fixed)).mean()
        return loss + self.diffusion_weight * pred.roughness() if self.diffusion_weight else loss


def non_local_errors(
    pred: DisplacementDistribution | PlanarDistribution | KeypointDistribution,
    moving: torch.Tensor,
    fixed: torch.Tensor,
) -> torch.Tensor:
    """``(B, C)`` mean squared differences of what points expect to see and of what is there."""
    return (pred.seen(moving) - pred.here(fixed)).square().flatten(2).mean(2)


def check_pair(
    pred: DisplacementDistribution | PlanarDistribution | KeypointDistribution, target: torch.Tensor, what: str
) -> None:
    if not hasattr(pred, "seen"):
        raise ValueError(
            "A non-local loss needs the distribution of displacements, got a field. Give RegistrationNet "
            "probabilistic_training=True, or KeypointTraining distribution=True, and call it in training mode."
        )
    if target.dim() != 5 or target.shape[1] != 2:
        raise ValueError(f"A non-local loss needs {what} (B, 2, I, J, K), moving and fixed, got {tuple(target.shape)}.")
