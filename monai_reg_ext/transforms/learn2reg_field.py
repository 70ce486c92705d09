# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from monai_reg_ext.data.pairing import file_stem
from monai_reg_ext.data.whole_file import whole_file
from monai_reg_ext.transforms.check_pair import check_same_grid
from monai_reg_ext.transforms.conventions import ddf_to_learn2reg, learn2reg_to_ddf
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = ["find_learn2reg_field", "learn2reg_field_names", "read_voxel_field", "write_voxel_field"]

SUFFIXES = (".nii.gz", ".npz")
CODES = re.compile(r".*_(?P<case>\d{4})_(?P<modality>\d{4})")
FSL_INTENTS = range(2006, 2017)  # NIfTI's: FNIRT's and TOPUP's displacements and coefficients


def learn2reg_field_names(fixed: str | Path, moving: str | Path) -> tuple[str, str]:
    """Names, without suffix, that a pair's field has in Learn2Reg: with modalities, and the short one without.

    For ``LungCT_0001_0000.nii.gz`` and ``LungCT_0001_0001.nii.gz`` they are ``disp_0001_0000_0001_0001`` and
    ``disp_0001_0001``. The long one is always understood; the challenge's script takes the short one for modalities 0
    and 1 only.

    Raises:
        ValueError: when a name is not ``<Task>_<case>_<modality>``.
    """
    codes = []
    for image in (fixed, moving):
        match = CODES.fullmatch(file_stem(image))
        if match is None:
            raise ValueError(
                f"Learn2Reg images are named <Task>_<case>_<modality>, e.g. LungCT_0001_0000; got {image}."
            )
        codes.append((match["case"], match["modality"]))
    (fixed_case, fixed_modality), (moving_case, moving_modality) = codes
    return f"disp_{fixed_case}_{fixed_modality}_{moving_case}_{moving_modality}", f"disp_{fixed_case}_{moving_case}"


def find_learn2reg_field(folder: str | Path, fixed: str | Path, moving: str | Path) -> Path:
    """File of a pair's field in a Learn2Reg submission, under either name, ``.nii.gz`` or ``.npz``.

    Raises:
        FileNotFoundError: when there is none, with the names looked for.
    """
    candidates = [
        Path(folder) / f"{name}{suffix}" for name in learn2reg_field_names(fixed, moving) for suffix in SUFFIXES
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} holds none of {', '.join(path.name for path in candidates)}.")


def read_voxel_field(path: Path, fixed: MetaTensor | None) -> SpatialDisplacement:
    """Field in voxels from NIfTI or ``.npz``: Learn2Reg's forms, MONAI's ddf, this package's ``ddf.nii.gz``.

    Args:
        path: NIfTI ``(I, J, K, 3)`` or ``(3, I, J, K)``, or ``.npz`` with one array of a form that
            :py:func:`learn2reg_to_ddf` knows.
        fixed: ``(C, I, J, K)``, the image in whose voxels it counts. Without it NIfTI's own affine is taken, unless
            that is the identity, which Learn2Reg writes for lack of one.

    Raises:
        ValueError: when the place in space is unknown, the array has another shape, the affine is not the fixed
            image's, or the format is FSL's.
    """
    array, affine = _read_npz(path) if path.suffix == ".npz" else _read_nifti(path)
    tagged = affine is not None and not np.allclose(affine, np.eye(4))
    if fixed is None:
        if not tagged:
            raise ValueError("the file does not tell where the field lies in space: give the fixed image.")
        size = array.shape[:3] if array.shape[-1] == 3 else array.shape[1:]
        return SpatialDisplacement(learn2reg_to_ddf(array, size), torch.as_tensor(affine))
    ddf = learn2reg_to_ddf(array, fixed.shape[1:])
    if tagged:
        check_same_grid("the displacement field", MetaTensor(ddf, affine=torch.as_tensor(affine)), fixed, "fixed")
    return SpatialDisplacement(ddf, fixed.affine)


def write_voxel_field(field: SpatialDisplacement, path: Path) -> None:
    """Write Learn2Reg's form ``(I, J, K, 3)`` in voxels: NIfTI float32 with the affine, or ``.npz`` float16 without.

    float16 keeps eleven binary digits: a displacement of 8 to 16 voxels is stored to 0.004 voxels.
    """
    array = ddf_to_learn2reg(field.ddf).cpu().numpy()
    with whole_file(path) as unfinished:
        if path.suffix == ".npz":
            np.savez_compressed(unfinished, array.astype(np.float16))
        else:
            image = nib.Nifti1Image(np.ascontiguousarray(array, np.float32), field.affine.numpy())
            image.header.set_xyzt_units("mm")
            nib.save(image, unfinished)


def _read_npz(path: Path) -> tuple[np.ndarray, None]:
    with np.load(path) as content:
        if len(content.files) != 1:
            raise ValueError(f"a Learn2Reg field is the only array of its file, got {content.files}.")
        return _four_axes(content[content.files[0]]), None


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    if int(image.header["intent_code"]) in FSL_INTENTS:
        raise ValueError("the header says it is FSL's, whose fields are not read. Convert it to ITK's form.")
    return _four_axes(image.get_fdata(dtype=np.float32)), image.affine


def _four_axes(array: np.ndarray) -> np.ndarray:
    if array.ndim != 4 or 3 not in (array.shape[0], array.shape[-1]):
        raise ValueError(f"a displacement field has three components per voxel, got an array of {array.shape}.")
    return array
