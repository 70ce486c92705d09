# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import convert_to_tensor
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import as_feature_block
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.upsample_ddf import regrid_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["RegistrationNet"]


class RegistrationNet(nn.Module):
    """The skeleton that all methods share: features, estimator, refiner, passes.

    Estimator and refiner work on control grids of their own and know nothing else: they get the features averaged over
    the cells of ``spacing(size)``, voxels per cell for an image of that size, and count displacements in these cells.

    Args:
        features: what is compared; a :py:class:`FeatureBlock`, which may pool without all voxels' features at once, or
            any module ``(B, C, I, J, K) -> (B, F, I, J, K)``.
        estimator: where things went, ``(fixed, moving features) -> coarse_ddf``.
        refiner: polish, ``(fixed, moving features, coarse_ddf) -> coarse_ddf``; optional.
        passes: how often to register: later passes see the moving image warped so far, and their fields are composed.
        final_widths: box filters over the field of each pass at full resolution; none by default.
        compat: borders and change of grids as convexAdam has them: dropped tails, see :py:func:`pool_to_grid`, and
            stretched fields, see :py:func:`upsample_ddf`.

    Shape:
        - input: ``(B, 2C, I, J, K)``, the channels of the moving image, then those of the fixed one.
        - output: ddf ``(B, 3, I, J, K)`` float32 in voxels; ``warped(x) = moving(x + ddf(x))``.

    Raises:
        ValueError: when the number of channels is odd, or an estimator's or refiner's field is not on its grid.
    """

    def __init__(
        self,
        features: nn.Module,
        estimator: nn.Module,
        refiner: nn.Module | None = None,
        passes: int = 1,
        final_widths: Sequence[int] = (),
        compat: bool = False,
    ) -> None:
        super().__init__()
        if passes < 1:
            raise ValueError(f"RegistrationNet needs passes >= 1, got {passes}.")
        self.features = features
        self.estimator = estimator
        self.refiner = refiner
        self.passes = passes
        self.final_widths = tuple(final_widths)
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
        size = fixed.shape[2:]
        stages = [self.estimator] if self.refiner is None else [self.estimator, self.refiner]
        spacings = [tuple(stage.spacing(size)) for stage in stages]
        # two stages on one grid share their features
        grids = list(dict.fromkeys(spacings))
        of_fixed, of_moving = as_feature_block(self.features).pooled_pair(fixed, moving, grids, self.compat)
        coarse_ddf = self.estimator(of_fixed[0], of_moving[0]).float()
        if self.refiner is not None:
            coarse_ddf = regrid_ddf(coarse_ddf, *spacings, size, self.compat)
            coarse_ddf = self.refiner(of_fixed[-1], of_moving[-1], coarse_ddf)
        ddf = upsample_ddf(coarse_ddf.float(), spacings[-1], size, self.compat)
        return box_filter(ddf, self.final_widths, self.compat)
