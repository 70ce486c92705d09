# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.data import ITKWriter, MetaTensor, NibabelWriter

from monai_reg_ext.data import whole_file

__all__ = ["VOLUME_SUFFIXES", "write_volume"]

WRITERS = {".nii.gz": NibabelWriter, ".nii": NibabelWriter, ".nrrd": ITKWriter, ".mha": ITKWriter}
VOLUME_SUFFIXES = tuple(WRITERS)


def write_volume(volume: MetaTensor, path: str | Path) -> None:
    """Write a volume ``(1, I, J, K)`` with its place in space; whole numbers take the smallest type that holds them.

    Raises:
        ValueError: when the suffix is none of ``.nii.gz``, ``.nii``, ``.nrrd`` and ``.mha``.
        OSError: when the file cannot be written.
    """
    path = Path(path).expanduser()
    writer = next((writer for suffix, writer in WRITERS.items() if path.name.lower().endswith(suffix)), None)
    if writer is None:
        raise ValueError(f"{path}: the suffix of an image must be one of {', '.join(VOLUME_SUFFIXES)}.")
    values = volume.as_tensor().cpu().numpy()
    writing = writer(output_dtype=_smallest_type(values))
    writing.set_data_array(values, channel_dim=0)
    writing.set_metadata({"affine": volume.affine.cpu().numpy()}, resample=False)
    with whole_file(path) as unfinished:
        writing.write(str(unfinished))


def _smallest_type(values: np.ndarray) -> np.dtype:
    if np.issubdtype(values.dtype, np.floating):
        return np.dtype(np.float32)
    return np.result_type(*(np.min_scalar_type(int(limit)) for limit in (values.min(), values.max())))
