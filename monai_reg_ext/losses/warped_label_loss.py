# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.modules.loss import _Loss

from monai_reg_ext.losses.label_channels import label_weights, one_hot_labels
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["WarpedLabelLoss"]

_LEAST_SHARE = 0.01


class WarpedLabelLoss(_Loss):
    r"""How badly a displacement field brings the labels of two images together.

    The moving labels' one-hot maps are warped linearly, so that there are gradients, and compared with the fixed ones:
    :math:`\sum_l w_l \, \text{mean}_x (m_l(x + u(x)) - f_l(x))^2`, with :math:`w_l` proportional to
    :math:`n_l^{-\text{exponent}}`, :math:`n_l` the voxels of label *l* in both images, and mean 1 over the labels that
    occur there. As cross-entropy it is :math:`-f_l(x) \log m_l(x + u(x))` that takes the place of the square; warped
    labels below 1 % count as 1 %, without gradient, so that no single voxel outweighs all others.

    Args:
        labels: the classes, background (0) included; other values are refused.
        exponent: how strongly rare labels count.
        background: weight of class 0 in place of its own; ``None`` keeps that.
        dice: weight of the mean soft Dice loss over the classes but background.
        diffusion: weight of the mean squared difference of neighbouring displacements, in voxels.
        error: ``"squared"`` or ``"cross_entropy"``.

    Shape:
        - pred: ddf ``(B, 3, I, J, K)`` in voxels; half precision is counted in float32.
        - target: ``(B, 2, I, J, K)`` label maps, moving first, then fixed, as the network sees the images.
        - output: scalar.

    Raises:
        ValueError: when the shapes do not fit, a label map holds another class, or the error is unknown.

    Source: Siebert & Heinrich, "Learn to fuse input features for large-deformation registration with differentiable
    convex-discrete optimisation", WBIR 2022, section 2; cross-entropy: Heinrich, "Learning registration models with
    differentiable Gauss-Newton optimisation", MIDL 2022.
    """

    def __init__(
        self,
        labels: Sequence[int],
        exponent: float = 0.5,
        background: float | None = None,
        dice: float = 0.0,
        diffusion: float = 0.0,
        error: str = "squared",
    ) -> None:
        super().__init__()
        if error not in _ERRORS:
            raise ValueError(f"error must be one of {tuple(_ERRORS)}, got {error!r}.")
        self.labels = tuple(labels)
        self.exponent = exponent
        self.background = background
        self.dice = dice
        self.diffusion = diffusion
        self.error = error

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.shape != (pred.shape[0], 2, *pred.shape[2:]) or pred.shape[1] != 3:
            raise ValueError(
                "WarpedLabelLoss needs a ddf (B, 3, I, J, K) and label maps (B, 2, I, J, K), moving and fixed, got "
                f"{tuple(pred.shape)} and {tuple(target.shape)}."
            )
        moving, fixed = (one_hot_labels(label, self.labels) for label in target.split(1, dim=1))
        pred = pred.float()
        warped = warp(moving, pred)
        weights = label_weights(moving, fixed, self.exponent, self.background)
        loss = (weights * _ERRORS[self.error](warped, fixed).mean((2, 3, 4))).sum(1).mean()
        if self.dice:
            loss = loss + self.dice * _soft_dice_loss(warped[:, 1:], fixed[:, 1:])
        if self.diffusion:
            loss = loss + self.diffusion * sum(pred.diff(dim=dim).square().mean() for dim in (2, 3, 4))
        return loss


def _squared_error(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return (warped - fixed).square()


def _cross_entropy(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return -fixed * warped.clamp(min=_LEAST_SHARE).log()


def _soft_dice_loss(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    overlap = 2 * (warped * fixed).sum((2, 3, 4))
    total = warped.sum((2, 3, 4)) + fixed.sum((2, 3, 4))
    there = total > 0
    return (1 - overlap[there] / total[there]).sum() / there.sum().clamp(min=1)


_ERRORS = {"squared": _squared_error, "cross_entropy": _cross_entropy}
