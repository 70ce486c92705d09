# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import torch
from monai.data import ITKReader, MetaTensor
from monai.utils import ImageMetaKey, MetaKeys, convert_to_tensor

__all__ = ["read_volume"]

SEVERAL_VALUES = "{} values per voxel where registration needs one: extract a component"


def read_volume(path: Path, where: str, check_spacing: bool = True) -> MetaTensor:
    """Read one scalar 3-D volume: NIfTI through nibabel, everything else through ITK.

    Args:
        path: file, or folder of one DICOM series.
        where: how errors name the file.
        check_spacing: refuse voxel sizes of zero or below, which readers replace by their amount without a word.

    Returns:
        ``(1, I, J, K)``, axes in nibabel's order, affine to mm RAS, the file's own type of numbers.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, is no scalar 3-D volume, or has a voxel size that is not positive.
    """
    if not path.exists():
        raise FileNotFoundError(f"{where}: no such file. Check the path (relative paths start at {Path.cwd()}).")
    read = _read_nifti if path.name.lower().endswith((".nii", ".nii.gz")) else _read_itk
    try:
        array, affine, spacing = read(path)
    except Exception as error:  # libraries raise whatever they like
        raise ValueError(
            f"{where}: cannot be read as an image ({_cause(error)}). Is the file complete, its header valid and its "
            "format NIfTI, NRRD or MetaImage?"
        ) from None
    if check_spacing and min(spacing) <= 0:
        raise ValueError(
            f"{where}: voxel size must be above 0 mm, the header says {spacing}. Correct the header, or give the "
            "voxel size beside the file (fixed_spacing, moving_spacing)."
        )
    # torch knows the machine's byte order only
    volume = convert_to_tensor(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    if volume.ndim != 3 or min(volume.shape) < 2:
        raise ValueError(
            f"{where}: needs one scalar 3-D volume with at least 2 voxels along each axis, got shape {array.shape}. Of "
            "a time series extract one volume."
        )
    return MetaTensor(
        volume[None],
        affine=torch.as_tensor(affine, dtype=torch.float64),
        meta={ImageMetaKey.FILENAME_OR_OBJ: str(path)},
    )


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Array, affine and voxel size as nibabel reads them.

    MONAI's reader is not used: it replaces an sform that disagrees with the voxel size by the qform, without a word.
    """
    image = nib.load(path)
    with nib.openers.ImageOpener(path) as file:
        header = image.header_class.from_fileobj(file, check=False)  # the image's own is already mended
    return _volume_axes(np.asanyarray(image.dataobj)), image.affine, header["pixdim"][1:4].tolist()


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray, list[float]]:
    spacing = None if path.is_dir() else _itk_header_spacing(path)
    reader = ITKReader()
    array, header = reader.get_data(reader.read(path))
    return _volume_axes(array), header[MetaKeys.AFFINE], spacing or header["spacing"].tolist()


def _itk_header_spacing(path: Path) -> list[float]:
    """Voxel size with the signs that the file has; an image turns negative ones into flipped axes."""
    header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise ValueError("no format that ITK knows")
    header.SetFileName(str(path))
    header.ReadImageInformation()
    if header.GetNumberOfComponents() > 1:
        raise ValueError(SEVERAL_VALUES.format(header.GetNumberOfComponents()))
    return [header.GetSpacing(axis) for axis in range(header.GetNumberOfDimensions())]


def _volume_axes(array: np.ndarray) -> np.ndarray:
    """Without axes of extent 1 after the third."""
    if array.dtype.names:  # colours in NIfTI
        raise ValueError(SEVERAL_VALUES.format(len(array.dtype.names)))
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def _cause(error: Exception) -> str:
    """What a library says, in one line, without its source positions and addresses."""
    message = str(error).split("ITK ERROR: ")[-1]
    message = re.sub(r"\w+\(0x[0-9a-f]+\): ", "", message)
    return " ".join(message.split()) or type(error).__name__
