# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.layers.pool_to_grid import pool_slabs
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["SemanticFeatures"]


class SemanticFeatures(FeatureBlock):
    """Label maps as features: one-hot channels, rare labels weighted higher.

    The channel of label *l* holds ``scale * w_l`` where the label is, with ``w_l`` proportional to
    ``n_l ** -exponent``, *n_l* its number of voxels (in both images, where there is a pair), and mean 1 over the labels
    present. Background (0) is a label like the others.

    Args:
        scale: value of a channel of average weight; 10 suits the couplings of coupled convex optimisation.
        exponent: how strongly rare labels count; 0 gives all of them the same weight.
        labels: the classes, one channel each, for a network that needs them always in the same place; by default those
            present in the batch, in ascending order.

    Shape:
        - input: ``(B, 1, I, J, K)`` whole numbers of any dtype.
        - output: ``(B, L, I, J, K)`` float32, for *L* labels.

    Raises:
        ValueError: for more than one channel, or a label that is none of ``labels``.

    Source: ConvexAdam, nnU-Net features.
    """

    def __init__(self, scale: float = 10.0, exponent: float = 0.3, labels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.exponent = exponent
        self.labels = None if labels is None else sorted(labels)

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        """Features of one image, weighted by its own frequencies."""
        labels, weights = self._weights(label)
        return _one_hot(label, labels).mul_(weights)

    def pooled(
        self, label: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> list[torch.Tensor]:
        """Features of one image, weighted by its own frequencies; memory: what is returned and one slab."""
        return _pooled(label, *self._weights(label), spacings, compat)

    def pooled_pair(
        self, fixed: torch.Tensor, moving: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Features of both images, weighted by their common frequencies."""
        weights = self._weights(fixed, moving)
        return _pooled(fixed, *weights, spacings, compat), _pooled(moving, *weights, spacings, compat)

    def warped(self, label: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        """The label map moved by a ddf, nearest neighbour."""
        return warp(label, ddf, mode="nearest")

    def _weights(self, *label_maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels ``(L,)`` of all maps and their weights ``(B, L, 1, 1, 1)``."""
        for label in label_maps:
            if label.dim() != 5 or label.shape[1] != 1:
                raise ValueError(
                    f"SemanticFeatures needs label maps of shape (B, 1, I, J, K), got {tuple(label.shape)}."
                )
        labels = self._channels(torch.cat([label.flatten().unique_consecutive() for label in label_maps]).unique())
        counts = sum(torch.stack([_counts(item, labels) for item in label]) for label in label_maps)
        present = counts > 0
        weights = torch.where(present, counts.clamp(min=1) ** -self.exponent, 0.0)
        weights = self.scale * weights / (weights.sum(1, keepdim=True) / present.sum(1, keepdim=True))
        return labels, weights[:, :, None, None, None]

    def _channels(self, present: torch.Tensor) -> torch.Tensor:
        if self.labels is None:
            return present
        unknown = sorted(set(present.tolist()) - set(self.labels))
        if unknown:
            raise ValueError(
                f"a label map holds {len(unknown)} classes, e.g. {unknown[:5]}, that are none of the {self.labels} the "
                "features were made for. Give label maps of these classes."
            )
        return torch.tensor(self.labels, device=present.device)


def _counts(label: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # label maps are runs of equal voxels: far fewer of them have to be looked up
    values, lengths = label.flatten().unique_consecutive(return_counts=True)
    channels = torch.searchsorted(labels, values.to(labels.dtype))
    return torch.zeros_like(labels, dtype=torch.float32).index_add_(0, channels, lengths.float())


def _one_hot(label: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (label == labels.view(1, -1, 1, 1, 1)).float()


def _pooled(
    label: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    spacings: Sequence[Sequence[int]],
    compat: bool,
) -> list[torch.Tensor]:
    def slab(begin: int, end: int) -> torch.Tensor:
        return _one_hot(label[:, :, begin:end], labels)

    return [grid.mul_(weights) for grid in pool_slabs(slab, label, len(labels), spacings, compat)]
