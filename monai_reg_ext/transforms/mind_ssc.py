# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor

from monai_reg_ext.networks.blocks.mind_ssc import MindSSC

__all__ = ["MindSSCD", "MindSSCDict", "MindSSCTransform", "MindSSCd"]


class MindSSCTransform(Transform):
    """MIND-SSC descriptors of one image, see :py:class:`monai_reg_ext.networks.blocks.MindSSC`.

    Args:
        radius: half-width of a patch, in voxels.
        dilation: distance of the patch centres from the voxel, in voxels.

    Shape:
        ``(1, I, J, K)`` -> ``(12, I, J, K)`` float32; a MetaTensor keeps its affine.
    """

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        self.mind_ssc = MindSSC(radius, dilation)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        descriptors = self.mind_ssc(convert_to_tensor(image, track_meta=False)[None])[0]
        return MetaTensor(descriptors, affine=image.affine) if isinstance(image, MetaTensor) else descriptors


class MindSSCd(MapTransform):
    """Dictionary version of :py:class:`MindSSCTransform`."""

    def __init__(
        self, keys: KeysCollection, radius: int = 1, dilation: int = 2, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = MindSSCTransform(radius, dilation)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key])
        return out


MindSSCD = MindSSCDict = MindSSCd
