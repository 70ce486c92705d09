# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep

from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.transforms.check_pair import points_outside
from monai_reg_ext.transforms.conventions import mm_to_voxel, voxel_to_mm

__all__ = ["WarpPoints", "WarpPointsD", "WarpPointsDict", "WarpPointsd"]


class WarpPoints(Transform):
    """Where points of fixed space lie in moving space, by the displacement field interpolated linearly.

    Raises:
        TypeError: when the ddf has no affine.
        ValueError: when points lie outside the fixed image, where nothing is known of their displacement.
    """

    def __call__(self, points_mm: torch.Tensor, ddf: MetaTensor) -> torch.Tensor:
        """Warp.

        Args:
            points_mm: ``(N, 3)`` in fixed space, mm RAS.
            ddf: ``(3, I, J, K)``, total displacement in voxels, with the affine of the fixed image.

        Returns:
            ``(N, 3)`` float64 in moving space, mm RAS.
        """
        if not isinstance(ddf, MetaTensor):
            raise TypeError(f"ddf must be a MetaTensor with the fixed image's affine, got {type(ddf).__name__}.")
        outside = points_outside(points_mm, ddf)
        if outside:
            raise ValueError(f"{outside} of {len(points_mm)} points lie outside the fixed image. Leave them out.")
        voxel = mm_to_voxel(points_mm, ddf.affine).to(ddf.device)
        return voxel_to_mm(voxel + sample_points(ddf.as_tensor()[None], voxel[None])[0], ddf.affine)


class WarpPointsd(MapTransform):
    """Dictionary version of :py:class:`WarpPoints`.

    Args:
        keys: points ``(N, 3)`` of fixed space, mm RAS.
        ddf_key: total displacement on the fixed grid, with its affine.
        output_keys: where results go, one per key.
        allow_missing_keys: whether keys may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "fixed_points",
        ddf_key: str = "pred",
        output_keys: KeysCollection = "warped_points",
        allow_missing_keys: bool = True,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ddf_key = ddf_key
        self.output_keys = ensure_tuple_rep(output_keys, len(self.keys))
        self.warper = WarpPoints()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key, output_key in self.key_iterator(out, self.output_keys):
            out[output_key] = self.warper(out[key], out[self.ddf_key])
        return out


WarpPointsD = WarpPointsDict = WarpPointsd
