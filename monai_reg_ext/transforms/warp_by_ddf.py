# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, ensure_tuple_rep
from scipy.ndimage import map_coordinates

from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.conventions import moving_voxels

__all__ = ["WarpByDDF", "WarpByDDFD", "WarpByDDFDict", "WarpByDDFd"]

MODES = ("bilinear", "cubic", "nearest")


class WarpByDDF(Transform):
    """Bring a moving image or label map onto the fixed grid by one interpolation of its original voxels.

    Args:
        mode: ``"bilinear"`` (linear along every axis) for intensities; ``"cubic"`` for intensities by cubic B-splines,
            sharper and slower, on the CPU, values may overshoot; ``"nearest"`` for labels: 0 outside, and where the
            grids are one exactly Learn2Reg's result, ``scipy.ndimage.map_coordinates(order=0)``.
        background: intensity outside the moving image, but with ``"nearest"``; ``None`` takes its minimum.
    """

    def __init__(self, mode: str = "bilinear", background: float | None = None) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}.")
        self.mode = mode
        self.background = background

    def __call__(self, moving: MetaTensor, ddf: torch.Tensor, fixed_affine: torch.Tensor) -> MetaTensor:
        """Warp.

        Args:
            moving: ``(C, ...)`` on its own grid, with its own affine.
            ddf: ``(3, I, J, K)``, total displacement in voxels of the fixed grid.
            fixed_affine: ``(4, 4)`` of that grid.

        Returns:
            ``(C, I, J, K)`` on the device of the ddf, with the fixed affine and the moving image's file name.
        """
        values = moving.as_tensor().to(ddf.device)
        if self.mode == "nearest":
            coordinates = moving_voxels(ddf, fixed_affine, moving.affine, torch.float64)
            index = _nearest_voxels(coordinates, values.shape[1:])
            warped = sample(values[None], index[None], "nearest", "zeros")[0]
        elif self.mode == "cubic":
            coordinates = moving_voxels(ddf, fixed_affine, moving.affine, torch.float64)
            background = values.min().item() if self.background is None else self.background
            warped = _by_splines(values, coordinates, background)
        else:
            coordinates = moving_voxels(ddf, fixed_affine, moving.affine)
            background = values.min() if self.background is None else self.background
            warped = sample((values - background)[None], coordinates[None], padding="zeros")[0] + background
        meta = {ImageMetaKey.FILENAME_OR_OBJ: moving.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")}
        return MetaTensor(warped, affine=fixed_affine, meta=meta)


class WarpByDDFd(MapTransform):
    """Dictionary version of :py:class:`WarpByDDF`.

    Args:
        keys: moving images and label maps.
        ddf_key: total displacement ``(3, I, J, K)`` on the fixed grid.
        fixed_key: image that gives the grid.
        mode: per key, see :py:class:`WarpByDDF`.
        output_keys: where results go, one per key.
        background: see :py:class:`WarpByDDF`.
        allow_missing_keys: whether keys may be absent, e.g. label maps of a pair without.

    Raises:
        ValueError: when the ddf is not on the grid of the fixed image.
    """

    def __init__(
        self,
        keys: KeysCollection = ("moving", "moving_label"),
        ddf_key: str = "pred",
        fixed_key: str = "fixed",
        mode: str | Sequence[str] = ("bilinear", "nearest"),
        output_keys: KeysCollection = ("warped", "warped_label"),
        background: float | None = None,
        allow_missing_keys: bool = True,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ddf_key = ddf_key
        self.fixed_key = fixed_key
        self.output_keys = ensure_tuple_rep(output_keys, len(self.keys))
        self.warpers = [WarpByDDF(mode, background) for mode in ensure_tuple_rep(mode, len(self.keys))]

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        ddf, fixed = out[self.ddf_key], out[self.fixed_key]
        if tuple(ddf.shape) != (3, *fixed.shape[1:]):
            raise ValueError(
                f"{self.ddf_key} must be on the grid of {self.fixed_key}, {(3, *fixed.shape[1:])}, got "
                f"{tuple(ddf.shape)}. Use DDFToFixedGridd before."
            )
        for key, output_key, warper in self.key_iterator(out, self.output_keys, self.warpers):
            out[output_key] = warper(out[key], ddf, fixed.affine)
        return out


def _by_splines(values: torch.Tensor, coordinates: torch.Tensor, background: float) -> torch.Tensor:
    positions = coordinates.cpu().numpy()
    channels = values.float().cpu().numpy()
    warped = [map_coordinates(channel, positions, order=3, mode="constant", cval=background) for channel in channels]
    return torch.from_numpy(np.stack(warped)).to(values.device)


def _nearest_voxels(coordinates: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Indices by rounding half up in float64, as scipy does, and -1 outside; overwrites the coordinates.

    Float32 would round a few coordinates in a million to the other voxel.
    """
    last = torch.tensor(size, dtype=coordinates.dtype, device=coordinates.device).reshape(3, 1, 1, 1) - 1
    outside = (coordinates < 0) | (coordinates > last)
    return coordinates.add_(0.5).floor_().masked_fill_(outside, -1)


WarpByDDFD = WarpByDDFDict = WarpByDDFd
