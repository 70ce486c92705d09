# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SemanticFeatures"]


class SemanticFeatures(nn.Module):
    """Label maps as features: one-hot channels, rare labels weighted higher.

    The channel of label *l* holds ``scale * w_l`` where the label is, with ``w_l`` proportional to
    ``n_l ** -exponent``, *n_l* its number of voxels in both images, and mean 1 over the labels present. Background
    (0) is a label like the others.

    Args:
        scale: value of a channel of average weight; 10 suits the couplings of coupled convex optimisation.
        exponent: how strongly rare labels count.

    Shape:
        - input: ``(B, 1, I, J, K)`` whole numbers of any dtype.
        - output: ``(B, L, I, J, K)`` float32; *L* labels present in the batch, in ascending order.

    Source: ConvexAdam, nnU-Net features.
    """

    def __init__(self, scale: float = 10.0, exponent: float = 0.3) -> None:
        super().__init__()
        self.scale = scale
        self.exponent = exponent

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        """Features of one image, weighted by its own frequencies."""
        one_hot = self._one_hot(label, label.unique())
        return one_hot * self._weights(one_hot)

    def pair(self, fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of both images, weighted by their common frequencies."""
        labels = torch.cat([fixed.unique(), moving.unique()]).unique()
        fixed, moving = self._one_hot(fixed, labels), self._one_hot(moving, labels)
        weights = self._weights(fixed, moving)
        return fixed.mul_(weights), moving.mul_(weights)

    def _one_hot(self, label: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if label.dim() != 5 or label.shape[1] != 1:
            raise ValueError(f"SemanticFeatures needs label maps of shape (B, 1, I, J, K), got {tuple(label.shape)}.")
        return (label == labels.view(1, -1, 1, 1, 1)).float()

    def _weights(self, *one_hots: torch.Tensor) -> torch.Tensor:
        counts = sum(one_hot.sum((2, 3, 4), keepdim=True) for one_hot in one_hots)
        present = counts > 0
        weights = torch.where(present, counts.clamp(min=1) ** -self.exponent, 0.0)
        mean = weights.sum(1, keepdim=True) / present.sum(1, keepdim=True)
        return self.scale * weights / mean
