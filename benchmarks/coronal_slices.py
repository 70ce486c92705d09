# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""One coronal slice of every abdominal label map, on pixels of one size, with its distance map as features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_reg_ext.networks.blocks.signed_distance_features import SignedDistanceFeatures
from monai_reg_ext.transforms import voxel_spacing
from monai_reg_ext.transforms.read_volume import read_volume

__all__ = ["ORGANS", "Slice", "coronal_slice", "read_slices"]

ORGANS = (1, 2, 3, 6, 7, 8, 9)  # spleen, right and left kidney, liver, stomach, aorta, inferior vena cava


class Slice(NamedTuple):
    """Classes counted from 1 in the order of the organs, ``(1, 1, *size)``, and features ``(1, F, *size)``."""

    label: torch.Tensor
    features: torch.Tensor


def read_slices(
    paths: Sequence[str], organs: Sequence[int], size: Sequence[int], pixel_mm: float, merged: bool
) -> list[Slice]:
    """Slices of label maps, see :py:func:`coronal_slice`; features of all organs merged, or one channel for each."""
    features = SignedDistanceFeatures(merged, range(1, len(organs) + 1))
    slices = []
    for path in paths:
        label = coronal_slice(read_volume(Path(path), path), organs, size, pixel_mm)
        slices.append(Slice(label, features(label)))
    return slices


def coronal_slice(label: MetaTensor, organs: Sequence[int], size: Sequence[int], pixel_mm: float) -> torch.Tensor:
    """The slice with the most of all organs, by the product of their areas.

    Args:
        label: label map ``(1, I, J, K)`` with an affine to mm.
        organs: its classes; all others count as background.
        size: pixels from left to right, the middle of the scan, and from the bottom to its top.
        pixel_mm: edge of a pixel.

    Returns:
        ``(1, 1, *size)`` uint8, background beyond the scan.
    """
    label = Orientation(axcodes="RAS", labels=None)(label)
    classes = sum(number * (label[0].as_tensor() == organ) for number, organ in enumerate(organs, start=1))
    areas = torch.stack([(classes == number).sum((0, 2)) for number in range(1, len(organs) + 1)])
    plane = classes[:, int(areas.double().log1p().sum(0).argmax())]
    spacing = voxel_spacing(label.affine)[[0, 2]].tolist()
    scaled = [round(extent * edge / pixel_mm) for extent, edge in zip(plane.shape, spacing, strict=True)]
    plane = F.interpolate(plane[None, None].float(), scaled, mode="nearest-exact")
    left = (size[0] - scaled[0]) // 2
    padding = [size[1] - scaled[1], 0, left, size[0] - scaled[0] - left]
    return F.pad(plane, padding).to(torch.uint8)
