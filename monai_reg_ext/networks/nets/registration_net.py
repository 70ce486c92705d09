# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from monai.utils import convert_to_tensor
from torch import nn

from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.upsample_ddf import upsample_ddf
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["RegistrationNet"]


class RegistrationNet(nn.Module):
    """The skeleton that all methods share: features, estimator, refiner, passes.

    Args:
        features: what is compared, ``(B, C, I, J, K) -> (B, F, I, J, K)``; run on each image. A module that must see
            both images offers ``pair(fixed, moving)``, which returns both features.
        estimator: where things went, ``(fixed, moving features) -> coarse_ddf`` in cells of its ``spacing(size)``.
        refiner: polish, ``(fixed, moving features, ddf) -> ddf``; optional.
        passes: how often to register: later passes see the moving image warped so far, and their fields are composed.
        compat: upsample the coarse field as convexAdam does, see :py:func:`upsample_ddf`.

    Shape:
        - input: ``(B, 2C, I, J, K)``, the channels of the moving image, then those of the fixed one.
        - output: ddf ``(B, 3, I, J, K)`` float32 in voxels; ``warped(x) = moving(x + ddf(x))``.

    Raises:
        ValueError: when the number of channels is odd.
    """

    def __init__(
        self,
        features: nn.Module,
        estimator: nn.Module,
        refiner: nn.Module | None = None,
        passes: int = 1,
        compat: bool = False,
    ) -> None:
        super().__init__()
        if passes < 1:
            raise ValueError(f"RegistrationNet needs passes >= 1, got {passes}.")
        self.features = features
        self.estimator = estimator
        self.refiner = refiner
        self.passes = passes
        self.compat = compat

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.dim() != 5 or image.shape[1] % 2:
            raise ValueError(
                "RegistrationNet needs moving and fixed side by side, (B, 2C, I, J, K), "
                f"got shape {tuple(image.shape)}. Concatenate them along the channels."
            )
        moving, fixed = image.chunk(2, dim=1)
        return self.register(moving, fixed)

    def register(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Field that warps ``moving`` onto ``fixed``; both ``(B, C, I, J, K)`` on one grid."""
        moving, fixed = convert_to_tensor((moving, fixed), track_meta=False)
        if moving.shape != fixed.shape:
            raise ValueError(
                f"RegistrationNet needs fixed and moving on one grid: fixed has shape {tuple(fixed.shape)}, moving "
                f"{tuple(moving.shape)}. Resample first, e.g. with ResampleToFixedd."
            )
        ddf = self._register_once(moving, fixed)
        for _ in range(self.passes - 1):
            ddf = compose_ddf(ddf, self._register_once(warp(moving, ddf), fixed))
        return ddf

    def _register_once(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        fixed_features, moving_features = self._features(fixed, moving)
        coarse_ddf = self.estimator(fixed_features, moving_features)
        size = fixed.shape[2:]
        ddf = upsample_ddf(coarse_ddf.float(), self.estimator.spacing(size), size, self.compat)
        return ddf if self.refiner is None else self.refiner(fixed_features, moving_features, ddf)

    def _features(self, fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if hasattr(self.features, "pair"):
            return self.features.pair(fixed, moving)
        return self.features(fixed), self.features(moving)
