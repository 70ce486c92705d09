# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey

from monai_reg_ext.transforms.conventions import resample_ddf, total_ddf
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = ["DDFToFixedGrid", "DDFToFixedGridD", "DDFToFixedGridDict", "DDFToFixedGridd"]


class DDFToFixedGrid(Transform):
    """The total displacement on the fixed grid, from a network's result on its working grid.

    Vectors are resampled through physical space, the initial alignment is composed in, ``total(p) = initial(ddf(p))``,
    and the fixed image's affine and file name are stamped on: networks hand on the meta of the first image they were
    given, the moving one.

    Raises:
        ValueError: when the displacement is not finite or not on the working grid.
    """

    def __call__(
        self, ddf: torch.Tensor, working: MetaTensor, fixed: MetaTensor, initial: torch.Tensor | SpatialDisplacement
    ) -> MetaTensor:
        """Convert.

        Args:
            ddf: ``(3, i, j, k)`` in voxels of the working grid, relative to ``initial``.
            working: image on the working grid.
            fixed: image on the fixed grid ``(1, I, J, K)``.
            initial: from fixed to moving space: ``(4, 4)``, mm RAS, or a field, also as MetaTensor ``(3, I, J, K)``.

        Returns:
            ``(3, I, J, K)`` float32 in voxels of the fixed grid.
        """
        if tuple(ddf.shape) != (3, *working.shape[1:]):
            raise ValueError(f"a ddf on the working grid is {(3, *working.shape[1:])}, got {tuple(ddf.shape)}.")
        if not torch.isfinite(ddf).all():
            raise ValueError("the displacement has NaN or infinite voxels: the registration itself failed.")
        if isinstance(initial, MetaTensor) and initial.ndim == 4:
            initial = SpatialDisplacement.from_metatensor(initial)
        ddf, size = ddf.to(torch.float32), fixed.shape[1:]
        if isinstance(initial, SpatialDisplacement):
            chain = [SpatialDisplacement(ddf, working.affine), initial]
            total = SpatialDisplacement.from_chain(chain, fixed.affine, size).ddf
        else:
            total = total_ddf(resample_ddf(ddf, working.affine, fixed.affine, size), fixed.affine, initial)
        meta = {ImageMetaKey.FILENAME_OR_OBJ: fixed.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")}
        return MetaTensor(total, affine=fixed.affine, meta=meta)


class DDFToFixedGridd(MapTransform):
    """Dictionary version of :py:class:`DDFToFixedGrid`.

    Args:
        keys: displacements on the working grid.
        fixed_key: image on the fixed grid; ``<fixed_key>_working`` is the one on the working grid.
        initial_key: transform from fixed to moving space, as :py:class:`ResampleToFixedd` writes it.
        allow_missing_keys: whether displacements may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        fixed_key: str = "fixed",
        initial_key: str = "initial",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.fixed_key = fixed_key
        self.initial_key = initial_key
        self.converter = DDFToFixedGrid()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        working, fixed, initial = out[f"{self.fixed_key}_working"], out[self.fixed_key], out[self.initial_key]
        for key in self.key_iterator(out):
            out[key] = self.converter(out[key], working, fixed, initial)
        return out


DDFToFixedGridD = DDFToFixedGridDict = DDFToFixedGridd
