# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor

from monai_reg_ext.networks.blocks.signed_distance_features import SignedDistanceFeatures
from monai_reg_ext.transforms.conventions import voxel_spacing

__all__ = ["SignedDistanceMap", "SignedDistanceMapD", "SignedDistanceMapDict", "SignedDistanceMapd"]

UNITS = ("voxel", "mm")


class SignedDistanceMap(Transform):
    """Signed distance to the border of what is labelled, see :py:func:`monai_reg_ext.networks.layers.signed_distance`.

    Args:
        labels: one channel for each of these classes; by default one for everything that is labelled.
        power: 0.5 for the root of distances, 1 for distances.
        scale: factor.
        unit: ``"voxel"``: distances count voxels, whatever their size. ``"mm"``: by the voxel size of the map's affine.

    Shape:
        ``(1, *size)`` whole numbers -> ``(L, *size)`` float32, positive inside; 0 everywhere where a class has no
        voxel, or every one. A MetaTensor keeps its affine.

    Raises:
        ValueError: for another unit, or a label map of several channels.
        TypeError: when mm are asked for a map without affine.
    """

    def __init__(
        self, labels: Sequence[int] | None = None, power: float = 0.5, scale: float = 20.0, unit: str = "voxel"
    ) -> None:
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {UNITS}, got {unit!r}.")
        self.settings = {"merged": labels is None, "labels": labels, "power": power, "scale": scale}
        self.unit = unit

    def __call__(self, label: torch.Tensor) -> torch.Tensor:
        features = SignedDistanceFeatures(**self.settings, voxel_size=self._voxel_size(label))
        maps = features(convert_to_tensor(label, track_meta=False)[None])[0]
        return MetaTensor(maps, affine=label.affine) if isinstance(label, MetaTensor) else maps

    def _voxel_size(self, label: torch.Tensor) -> Sequence[float] | None:
        if self.unit == "voxel":
            return None
        if not isinstance(label, MetaTensor):
            raise TypeError(
                f"SignedDistanceMap(unit='mm') needs a MetaTensor, whose affine tells the voxel size; got "
                f"{type(label).__name__}. Wrap it: MetaTensor(label, affine=...), or choose unit='voxel'."
            )
        return voxel_spacing(label.affine).tolist()[: label.dim() - 1]


class SignedDistanceMapd(MapTransform):
    """Dictionary version of :py:class:`SignedDistanceMap`."""

    def __init__(
        self,
        keys: KeysCollection,
        labels: Sequence[int] | None = None,
        power: float = 0.5,
        scale: float = 20.0,
        unit: str = "voxel",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = SignedDistanceMap(labels, power, scale, unit)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key])
        return out


SignedDistanceMapD = SignedDistanceMapDict = SignedDistanceMapd
