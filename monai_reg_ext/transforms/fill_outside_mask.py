# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import scipy.ndimage
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple

from monai_reg_ext.transforms.conventions import voxel_spacing

__all__ = ["FillOutsideMask", "FillOutsideMaskD", "FillOutsideMaskDict", "FillOutsideMaskd"]


class FillOutsideMask(Transform):
    """Continue the inside of a mask outwards: every voxel outside takes the value of the nearest one inside.

    Descriptors of local contrast such as MIND then see no edge at the mask's border, e.g. of the lungs against ribs
    that slide along them.

    Shape:
        - image: MetaTensor ``(C, I, J, K)``; distances are in mm of its voxel size.
        - mask: ``(1, I, J, K)``, not 0 inside.
        - output: as the image.

    Raises:
        ValueError: when the mask is empty or of another size.

    Source: convexAdam's masked MIND-SSC, here at full resolution and for any size.
    """

    def __call__(self, image: MetaTensor, mask: torch.Tensor) -> MetaTensor:
        if mask.shape[1:] != image.shape[1:] or mask.shape[0] != 1:
            raise ValueError(
                f"a mask for an image {tuple(image.shape)} has shape {(1, *image.shape[1:])}, got {tuple(mask.shape)}."
            )
        if not mask.any():
            raise ValueError("no voxel of the mask lies on the working grid. Do mask and initial alignment fit?")
        index = scipy.ndimage.distance_transform_edt(
            mask[0].cpu().numpy() == 0,
            sampling=voxel_spacing(image.affine).tolist(),
            return_distances=False,
            return_indices=True,
        )
        i, j, k = torch.from_numpy(index).to(image.device, torch.int64)
        return image[:, i, j, k]


class FillOutsideMaskd(MapTransform):
    """Dictionary version of :py:class:`FillOutsideMask`; an image whose mask is absent stays as it is.

    Args:
        keys: images.
        mask_keys: their masks, one per key.
        allow_missing_keys: whether images may be absent.
    """

    def __init__(self, keys: KeysCollection, mask_keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_keys = ensure_tuple(mask_keys)
        if len(self.mask_keys) != len(self.keys):
            raise ValueError(f"mask_keys needs one mask per key, got {self.mask_keys} for {self.keys}.")
        self.filler = FillOutsideMask()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key, mask_key in self.key_iterator(out, self.mask_keys):
            if mask_key in out:
                out[key] = self.filler(out[key], out[mask_key])
        return out


FillOutsideMaskD = FillOutsideMaskDict = FillOutsideMaskd
