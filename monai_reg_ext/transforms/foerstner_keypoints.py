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

from monai_reg_ext.networks.layers.foerstner_keypoints import foerstner_keypoints
from monai_reg_ext.transforms.conventions import voxel_spacing, voxel_to_mm

__all__ = ["FoerstnerKeypoints", "FoerstnerKeypointsD", "FoerstnerKeypointsDict", "FoerstnerKeypointsd"]


class FoerstnerKeypoints(Transform):
    """Places of an image that can be found again in another one, see :py:func:`foerstner_keypoints`.

    Args:
        number: most keypoints of an image.
        sigma: standard deviation in voxels over which slopes are gathered; a smaller one finds more places.
        window: voxels across within which no two keypoints lie, odd.
        selection: ``"farthest"`` spreads them evenly, ``"strongest"`` takes the most distinct ones.

    Raises:
        TypeError: when the image has no affine.
        ValueError: when there is no keypoint.
    """

    def __init__(self, number: int = 2000, sigma: float = 1.4, window: int = 3, selection: str = "farthest") -> None:
        self.number = number
        self.sigma = sigma
        self.window = window
        self.selection = selection

    def __call__(self, image: MetaTensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Find.

        Args:
            image: ``(C, I, J, K)`` with its affine.
            mask: ``(1, I, J, K)``, not 0 where keypoints may lie; by default everywhere.

        Returns:
            ``(N, 3)`` float64, mm RAS, at voxel centres, on the CPU.
        """
        if not isinstance(image, MetaTensor):
            raise TypeError(f"keypoints in mm need a MetaTensor with its affine, got {type(image).__name__}.")
        (voxels,) = foerstner_keypoints(
            image.as_tensor()[None],
            None if mask is None else torch.as_tensor(mask).as_subclass(torch.Tensor)[None],
            self.number,
            self.sigma,
            self.window,
            selection=self.selection,
            spacing=voxel_spacing(image.affine).tolist(),
        )
        if not len(voxels):
            raise ValueError("no keypoint in this image: it has no contrast, or its mask is empty or a thin line.")
        return voxel_to_mm(voxels.cpu(), image.affine)


class FoerstnerKeypointsd(MapTransform):
    """Dictionary version of :py:class:`FoerstnerKeypoints`.

    Args:
        keys: images.
        output_keys: where points go, one per key.
        mask_keys: masks, one per key, used where they are present; ``None``: none.
        number, sigma, window, selection: see :py:class:`FoerstnerKeypoints`.
        allow_missing_keys: whether keys may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection = "fixed",
        output_keys: KeysCollection = "fixed_points",
        mask_keys: KeysCollection | None = "fixed_mask",
        number: int = 2000,
        sigma: float = 1.4,
        window: int = 3,
        selection: str = "farthest",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = ensure_tuple_rep(output_keys, len(self.keys))
        self.mask_keys = ensure_tuple_rep(mask_keys, len(self.keys))
        self.finder = FoerstnerKeypoints(number, sigma, window, selection)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key, output_key, mask_key in self.key_iterator(out, self.output_keys, self.mask_keys):
            out[output_key] = self.finder(out[key], out.get(mask_key))
        return out


FoerstnerKeypointsD = FoerstnerKeypointsDict = FoerstnerKeypointsd
