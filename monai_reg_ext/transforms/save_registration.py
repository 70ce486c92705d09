# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform

from monai_reg_ext.transforms.conventions import ddf_to_itk_field, ddf_to_learn2reg

__all__ = ["SaveRegistrationD", "SaveRegistrationDict", "SaveRegistrationd"]

FILES = ("warped", "warped_label", "ddf", "field", "inverse_field", "uncertainty")


class SaveRegistrationd(Transform):
    """Write a pair's result under ``<output_dir>/<pair>/``; all of its files appear, or none.

    ========================  ====================  ==============================================================
    file                      from key              content
    ========================  ====================  ==============================================================
    ``warped.nii.gz``         ``warped``            moving image on the fixed grid, float32
    ``warped_label.nii.gz``   ``warped_label``      moving labels on the fixed grid, smallest integer type
    ``ddf.nii.gz``            ``pred``              ``(I, J, K, 3)`` float32, voxels: Learn2Reg's form
    ``field.nii.gz``          ``pred``              ITK displacement field, float32, mm LPS, vector image: SimpleITK,
                                                    ANTs and Slicer apply it to the original moving image
    ``inverse_field.nii.gz``  ``pred_inverse``      the same of the opposite direction, on its own grid: for the
                                                    original fixed image
    ``uncertainty.nii.gz``    ``uncertainty``       standard deviation of the displacement, float32, mm
    ========================  ====================  ==============================================================

    ``pred`` is needed and is the total displacement on the fixed grid, with the fixed affine; other keys are written
    where present, and such files of an earlier result are removed where not. The item passes unchanged.

    Args:
        output_dir: made when it does not exist.

    Raises:
        ValueError: when ``pair`` is no plain folder name.
        TypeError: when something to be saved has no affine.
        OSError: when the folder or a file cannot be written, with the path.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.output_dir = Path(output_dir).expanduser()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        _write_together(self.output_dir / _folder_name(out["pair"]), _images(out))
        return out


def _images(data: Mapping[Hashable, Any]) -> dict[str, nib.Nifti1Image]:
    pred = _checked("pred", data["pred"])
    images = {
        "ddf.nii.gz": _nifti(ddf_to_learn2reg(pred).cpu().numpy(), pred),
        "field.nii.gz": _itk_field(pred),
    }
    if "pred_inverse" in data:
        images["inverse_field.nii.gz"] = _itk_field(_checked("pred_inverse", data["pred_inverse"]))
    for key in ("warped", "uncertainty"):
        if key in data:
            images[f"{key}.nii.gz"] = _nifti(_channel_last(_checked(key, data[key])).astype(np.float32), data[key])
    if "warped_label" in data:
        label = _channel_last(_checked("warped_label", data["warped_label"]))
        smallest = np.result_type(*(np.min_scalar_type(int(limit)) for limit in (label.min(), label.max())))
        images["warped_label.nii.gz"] = _nifti(label.astype(smallest), data["warped_label"])
    return images


def _itk_field(ddf: MetaTensor) -> nib.Nifti1Image:
    field = ddf_to_itk_field(ddf, ddf.affine).cpu().numpy()
    image = _nifti(field[:, :, :, None].astype(np.float32), ddf)  # vectors stand on the fifth axis of NIfTI
    # "vector", not "displacement vector": readers turn the latter from RAS to LPS, and these are LPS already
    image.header.set_intent("vector")
    return image


def _nifti(array: np.ndarray, source: MetaTensor) -> nib.Nifti1Image:
    affine = source.affine.cpu().numpy()
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _channel_last(volume: MetaTensor) -> np.ndarray:
    array = np.moveaxis(volume.as_tensor().cpu().numpy(), 0, -1)
    return array[..., 0] if array.shape[-1] == 1 else array


def _checked(key: str, volume: Any) -> MetaTensor:
    if not isinstance(volume, MetaTensor):
        raise TypeError(
            f"{key} must be a MetaTensor, to be saved with its place in space; got {type(volume).__name__}."
        )
    return volume


def _folder_name(pair: str) -> str:
    if not pair or pair in (".", "..") or Path(pair).name != pair:
        raise ValueError(f"pair must be the name of one folder, without separators, got {pair!r}.")
    return pair


def _write_together(folder: Path, images: Mapping[str, nib.Nifti1Image]) -> None:
    """Write into a hidden folder beside, then move file by file: a file under its name is a whole one."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished_") as unfinished:
            for name, image in images.items():
                nib.save(image, Path(unfinished) / name)
            for name in (f"{stem}.nii.gz" for stem in FILES):
                if name in images:
                    os.replace(Path(unfinished) / name, folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror or error}). Give an output folder that can be written and has "
            "space."
        ) from None
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: written
                folder.rmdir()


SaveRegistrationD = SaveRegistrationDict = SaveRegistrationd
