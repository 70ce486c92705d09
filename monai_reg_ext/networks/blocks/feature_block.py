# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["FeatureBlock", "as_feature_block"]


class FeatureBlock(nn.Module):
    """What is compared: features of every voxel, and their averages over the cells of control grids.

    A subclass has to give :py:meth:`forward`. It gives :py:meth:`pooled` too where the averages can be had without the
    features of all voxels at once, and :py:meth:`pooled_pair` where the features of one image depend on the other.

    Shape:
        - image: ``(B, C, I, J, K)``.
        - output of ``forward``: ``(B, F, I, J, K)``.
        - output of ``pooled``: for every grid ``(B, F, i, j, k)``.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Features of every voxel."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    def pooled(
        self, image: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> list[torch.Tensor]:
        """Features of one image on control grids.

        Args:
            image: ``(B, C, I, J, K)``.
            spacings: one or several grids, voxels per cell along each axis.
            compat: drop partial cells, see :py:func:`pool_to_grid`.

        Returns:
            For every grid ``pool_to_grid(self(image), spacing, compat)``.
        """
        features = self(image)
        return [pool_to_grid(features, spacing, compat) for spacing in spacings]

    def pooled_pair(
        self, fixed: torch.Tensor, moving: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Features of two images that will be compared; see :py:meth:`pooled`."""
        return self.pooled(fixed, spacings, compat), self.pooled(moving, spacings, compat)

    def warped(self, image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        """An image ``(B, C, I, J, K)`` moved by a ddf ``(B, 3, I, J, K)``, such that it has features as before."""
        return warp(image, ddf)


def as_feature_block(module: nn.Module) -> FeatureBlock:
    """The module itself if it is a :py:class:`FeatureBlock`, else one that pools what the module gives."""
    return module if isinstance(module, FeatureBlock) else _FullResolution(module)


class _FullResolution(FeatureBlock):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.module(image)
