# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms.read_volume import read_volume
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement
from monai_reg_ext.transforms.transform_files import TRANSFORM_SUFFIXES, read_linear_transform, read_transform

__all__ = ["holds_transform", "read_field", "read_image", "read_matrix"]


def read_image(path: str | Path | None, option: str) -> MetaTensor | None:
    """The image ``(1, I, J, K)`` of an option, which errors name; ``None`` when it is not given."""
    return None if path in (None, "") else read_volume(Path(str(path)).expanduser(), f"{option} ({path})")


def read_field(files: Sequence[str], fixed: MetaTensor | None = None) -> SpatialDisplacement:
    """Field of one transform file, or of several in a row, on the grid of the fixed image.

    Args:
        files: as for :py:func:`~monai_reg_ext.transforms.read_transform`: a point of fixed space meets the first one
            first.
        fixed: image of the grid that the field is wanted on; by default that of the first file, when it is a field.

    Raises:
        FileNotFoundError, ValueError: as ``read_transform``.
    """
    if fixed is None and len(files) > 1:
        fixed = read_transform(files[0]).to_metatensor()
    return read_transform(files[0] if len(files) == 1 else list(files), fixed)


def read_matrix(files: Sequence[str]) -> torch.Tensor | None:
    """Matrix ``(4, 4)`` of transform files when all of them are linear, else ``None``."""
    if not all(holds_transform(file) for file in files):
        return None
    try:
        return read_linear_transform(list(files))
    except ValueError:  # read as a field next, with a message of its own where that fails too
        return None


def holds_transform(path: str | Path) -> bool:
    """Whether a file, by its suffix, holds ITK transforms of any kind and not a field on a grid alone."""
    return Path(path).name.lower().endswith(TRANSFORM_SUFFIXES)
