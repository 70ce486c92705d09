# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.signed_distance import signed_distance
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["SignedDistanceFeatures"]


class SignedDistanceFeatures(FeatureBlock):
    """Label maps as features: signed distance to the border of everything labelled, or of each organ.

    For label maps or for what a segmentation network makes of an image, see :py:class:`SegmentationChannel`. Steep
    beside borders and never flat, so that organs pull at each other from afar.

    Args:
        merged: one channel for all labels together, as the reference; ``False``: one for each.
        labels: the classes that count; by default all but background (0), and where there is a pair, those that are
            present in both images.
        power: see :py:func:`signed_distance`.
        scale: see :py:func:`signed_distance`.
        voxel_size: edges of a voxel; distances count voxels by default.

    Shape:
        - input: ``(B, 1, *size)`` whole numbers of any dtype.
        - output: ``(B, L, *size)`` float32, for *L* labels or 1. A label without any voxel has 0 everywhere; so it has
          in both images of a pair where one lacks it, since there is nothing to match.

    Raises:
        ValueError: for more than one channel.
    """

    def __init__(
        self,
        merged: bool = True,
        labels: Sequence[int] | None = None,
        power: float = 0.5,
        scale: float = 20.0,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.merged = merged
        self.labels = None if labels is None else tuple(labels)
        self.power = power
        self.scale = scale
        self.voxel_size = voxel_size

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        (regions,) = self._regions(label)
        return self._maps(regions)

    def pooled_pair(
        self, fixed: torch.Tensor, moving: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Features of both images, on the labels that both have."""
        of_pair = self._regions(fixed, moving)
        present = [regions.flatten(2).any(2) for regions in of_pair]
        in_both = (present[0] & present[1]).view(*present[0].shape, *[1] * (fixed.dim() - 2))
        fixed, moving = (self._maps(regions & in_both) for regions in of_pair)
        return tuple([pool_to_grid(maps, spacing, compat) for spacing in spacings] for maps in (fixed, moving))

    def warped(self, label: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        """The label map moved by a ddf, nearest neighbour."""
        return warp(label, ddf, mode="nearest")

    def _regions(self, *label_maps: torch.Tensor) -> list[torch.Tensor]:
        """Where each channel's labels are, ``(B, L, *size)`` bool, for every map."""
        for label in label_maps:
            if label.shape[1] != 1:
                raise ValueError(
                    f"SignedDistanceFeatures needs label maps of shape (B, 1, *size), got {tuple(label.shape)}."
                )
        if self.merged and self.labels is None:
            return [label > 0 for label in label_maps]
        classes = self._classes(label_maps)
        regions = [label == classes.view(1, -1, *[1] * (label.dim() - 2)) for label in label_maps]
        return [region.any(1, keepdim=True) for region in regions] if self.merged else regions

    def _classes(self, label_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.labels is not None:
            return torch.tensor(self.labels, device=label_maps[0].device)
        present = [set(label.unique().tolist()) - {0} for label in label_maps]
        common = set.intersection(*present) or {1}  # networks need a channel
        return torch.tensor(sorted(common), device=label_maps[0].device)

    def _maps(self, regions: torch.Tensor) -> torch.Tensor:
        return signed_distance(regions, self.power, self.scale, self.voxel_size)
