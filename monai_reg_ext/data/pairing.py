# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monai.utils import ImageMetaKey

__all__ = ["file_stem", "join_subjects", "pair_name"]

IMAGE_SUFFIX = re.compile(r"(\.(nii|hdr|img|mha|mhd|nrrd|nhdr|mgh|mgz|gipl|vtk|tiff?|dcm))?(\.gz)?$", re.IGNORECASE)


def file_stem(path: str | Path) -> str:
    """Name of an image file without folder and suffixes: ``"a/case.01.nii.gz"`` gives ``"case.01"``."""
    return IMAGE_SUFFIX.sub("", Path(path).name, count=1)


def pair_name(fixed: str | Path, moving: str | Path) -> str:
    """Name of a pair, also of its output folder: ``"<fixed stem>__<moving stem>"``."""
    return f"{file_stem(fixed)}__{file_stem(moving)}"


def join_subjects(fixed: Mapping[str, Any], moving: Mapping[str, Any]) -> dict[str, Any]:
    """Make a pair out of two subjects.

    Args:
        fixed: a subject: ``image`` (path or MetaTensor) and anything else that belongs to it, e.g. ``label``,
            ``mask``, ``points``; values that are None are left out.
        moving: the other subject.

    Returns:
        ``pair`` (see :py:func:`pair_name`), ``fixed``, ``moving`` and, for every further key, ``fixed_<key>`` and
        ``moving_<key>``, for example ``fixed_label``.

    Raises:
        ValueError: when a subject has no image.
    """
    pair: dict[str, Any] = {"pair": pair_name(_image_path(fixed), _image_path(moving))}
    for side, subject in (("fixed", fixed), ("moving", moving)):
        for key, value in subject.items():
            if value is not None:
                pair[side if key == "image" else f"{side}_{key}"] = value
    return pair


def _image_path(subject: Mapping[str, Any]) -> str | Path:
    image = subject.get("image")
    if image is None:
        raise ValueError(f"a subject needs the key 'image', got {sorted(subject)}.")
    return image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "subject") if isinstance(image, MetaTensor) else image
