# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ImageMetaKey

from monai_reg_ext.transforms.conventions import voxel_spacing
from monai_reg_ext.transforms.read_volume import read_volume

__all__ = ["LoadPairD", "LoadPairDict", "LoadPaird"]

LOGGER = logging.getLogger(__name__)
SIDES = ("fixed", "moving")
POINTS_SPACES = ("voxel", "ras", "lps")


class LoadPaird(Transform):
    """Load everything that an item names: images, label maps, masks and points of one pair.

    Files are NIfTI (nibabel) or whatever ITK reads (NRRD, MHA, a folder of one DICOM series). Whatever the format,
    array axes are in nibabel's order and the affine leads to millimetres RAS. Values that are no paths pass through:
    MetaTensors ``(1, I, J, K)`` for images, label maps and masks, ``(N, 3)`` arrays in mm RAS for points. Use
    :py:class:`CheckPaird` next.

    ===========================================  ==================================================
    key                                          after loading
    ===========================================  ==================================================
    ``fixed``, ``moving``                        MetaTensor ``(1, I, J, K)`` float32, own grid
    ``fixed_label``, ``moving_label``            MetaTensor ``(1, I, J, K)`` int32
    ``fixed_prediction``, ``moving_prediction``  the same, label maps that a network made
    ``fixed_mask``, ``moving_mask``              MetaTensor ``(1, I, J, K)`` uint8, 1 where not 0
    ``fixed_points``, ``moving_points``          tensor ``(N, 3)`` float64, mm RAS
    ===========================================  ==================================================

    A header with a wrong voxel size is put right by ``fixed_spacing`` or ``moving_spacing`` (three numbers, mm) in the
    item: it replaces the voxel size of that side's files, directions and origin stay, and the entry is consumed.
    Optional entries that are ``None`` count as absent.

    Args:
        points_space: what coordinates in point files count: ``"voxel"`` (indices of that side's image, as in
            Learn2Reg), ``"ras"`` or ``"lps"`` (mm). An item's own entry ``points_space`` goes first.

    Raises:
        ValueError, TypeError, FileNotFoundError: one line with the key, the file, what is wrong and what to do.
    """

    def __init__(self, points_space: str = "voxel") -> None:
        if points_space not in POINTS_SPACES:
            raise ValueError(f"points_space must be one of {POINTS_SPACES}, got {points_space!r}.")
        self.points_space = points_space

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = {key: value for key, value in data.items() if value is not None}
        missing = [side for side in SIDES if side not in out]
        if missing:
            raise ValueError(f"a pair needs an image 'fixed' and an image 'moving', {' and '.join(missing)} is absent.")
        points_space = out.pop("points_space", self.points_space)
        for side in SIDES:
            spacing = out.pop(f"{side}_spacing", None)
            for suffix, convert in CONVERTERS.items():
                key = side + suffix
                if key in out:
                    out[key] = _volume(key, out[key], convert, spacing)
            key = f"{side}_points"
            if key in out:
                out[key] = self._points(key, out[key], points_space, out[side].affine)
        return out

    def _points(self, key: str, value: Any, space: str, affine: torch.Tensor) -> torch.Tensor:
        if isinstance(value, (str, Path)):
            # imported late: the data room is free to use these transforms
            from monai_reg_ext.data import read_points

            try:
                return read_points(value, space=space, affine=affine)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{key}: {error}") from None
        return torch.as_tensor(np.asarray(value), dtype=torch.float64)


def _volume(key: str, value: Any, convert: Callable, spacing: Sequence[float] | None) -> MetaTensor:
    if isinstance(value, MetaTensor):
        where = key
        volume = value
    elif isinstance(value, (str, Path)):
        where = f"{key} ({value})"
        volume = read_volume(Path(value).expanduser(), where, check_spacing=spacing is None)
    else:
        raise TypeError(f"{key} must be a path or a MetaTensor with an affine, got {type(value).__name__}.")
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ValueError(f"{where}: needs shape (1, I, J, K), got {tuple(volume.shape)}. Add the channel axis.")
    affine = volume.affine if spacing is None else _with_spacing(where, volume.affine, spacing)
    # only what stays true after resampling: other header fields would contradict a corrected affine
    meta = {ImageMetaKey.FILENAME_OR_OBJ: str(volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, ""))}
    return MetaTensor(convert(where, volume.as_tensor()).contiguous(), affine=affine, meta=meta)


def _as_image(where: str, values: torch.Tensor) -> torch.Tensor:
    if values.is_complex():
        raise TypeError(f"{where}: holds complex numbers. Save the magnitude.")
    return values.to(torch.float32)


def _as_label(where: str, values: torch.Tensor) -> torch.Tensor:
    labels = values.to(torch.int32)
    wrong = labels != values
    if wrong.any():
        raise ValueError(
            f"{where}: a label map needs whole numbers, {int(wrong.sum())} voxels have others, e.g. "
            f"{values[wrong][0].item():g}. Was it resampled linearly, or is it an intensity image?"
        )
    return labels


def _as_mask(where: str, values: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise ValueError(f"{where}: has voxels that are NaN or infinite. A mask is 0 outside and 1 inside.")
    return (values != 0).to(torch.uint8)


def _with_spacing(where: str, affine: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    wanted = torch.as_tensor(spacing, dtype=torch.float64)
    if wanted.shape != (3,) or not (torch.isfinite(wanted).all() and (wanted > 0).all()):
        raise ValueError(f"{where}: the voxel size given must be three positive numbers in mm, got {spacing}.")
    header = voxel_spacing(affine)
    if not (header > 0).all():
        raise ValueError(
            f"{where}: the header's voxel size {header.tolist()} has no direction to keep. Correct the header itself."
        )
    LOGGER.info(
        "%s: voxel size %s mm replaces the header's %s", where, wanted.tolist(), header.round(decimals=4).tolist()
    )
    corrected = affine.to(torch.float64).clone()
    corrected[:3, :3] *= wanted / header
    return corrected


CONVERTERS = {"": _as_image, "_label": _as_label, "_prediction": _as_label, "_mask": _as_mask}

LoadPairD = LoadPairDict = LoadPaird
