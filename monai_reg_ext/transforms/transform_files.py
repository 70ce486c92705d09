# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import itk
import nibabel as nib
import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple, ensure_tuple_rep

from monai_reg_ext.data.whole_file import whole_file
from monai_reg_ext.transforms.itk_transform import (
    field_to_itk_image,
    itk_composite,
    itk_to_field,
    itk_to_matrix,
    to_itk_transform,
)
from monai_reg_ext.transforms.learn2reg_field import read_voxel_field, write_voxel_field
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = ["read_linear_transform", "read_matrix_or_field", "read_transform", "write_transform"]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
VOXEL_SUFFIXES = (".nii.gz", ".nii", ".npz")
FORMS = ("itk", "learn2reg")
FOREIGN_INTENTS = ("NREG_TRANS", "Mapping")  # NiftyReg (mm RAS), SPM (absolute positions)

Paths = str | Path | Sequence[str | Path]


def read_transform(
    path: Paths, fixed: MetaTensor | None = None, invert: bool | Sequence[bool] = False
) -> SpatialDisplacement:
    """Transform of a file, or of several in a row, as one field on the grid of the fixed image.

    ============================================  ======================================================================
    file                                          content
    ============================================  ======================================================================
    ``.nii.gz``, ``.nii`` with five axes,         displacement field of ITK, SimpleITK, ANTs, Slicer: mm LPS
    ``.nrrd``, ``.mha``
    ``.h5``, ``.tfm``, ``.txt``, ``.mat``         any ITK transform: linear, displacement field, B-spline, composite;
                                                  ANTs' ``0GenericAffine.mat``
    ``.nii.gz``, ``.nii`` with four axes,         voxels of the fixed image: Learn2Reg, MONAI, ``ddf.nii.gz``; not in a
    ``.npz``                                      row with others
    ============================================  ======================================================================

    Args:
        path: one file, or several as ``antsApplyTransforms`` lists them: the *last* acts first on the moving image,
            so a point of fixed space meets the first one first: ``[1Warp.nii.gz, 0GenericAffine.mat]``, and backward
            ``[0GenericAffine.mat, 1InverseWarp.nii.gz]`` with ``invert=[True, False]``.
        fixed: ``(C, I, J, K)``, image of the space whose points are moved. A single field file needs none and then
            keeps its own grid; between grids ITK interpolates, and beyond a field's grid nothing moves.
        invert: per file, whether to take the inverse; linear transforms only.

    Raises:
        FileNotFoundError: when a file does not exist.
        ValueError: for a suffix, content or transform type that is not known, a field that lies elsewhere than the
            fixed image, and a missing fixed image where the file has no grid. The message names the file.
    """
    paths = [Path(one).expanduser() for one in ensure_tuple(path)]
    flags = ensure_tuple_rep(invert, len(paths))
    if len(paths) == 1 and not flags[0] and _counts_voxels(paths[0]):
        with _naming(paths):
            return read_voxel_field(paths[0], fixed)
    transform = itk_composite([_read_itk(one, flag) for one, flag in zip(paths, flags, strict=True)])
    with _naming(paths):
        return itk_to_field(transform) if fixed is None else itk_to_field(transform, fixed.affine, fixed.shape[1:])


def read_linear_transform(path: Paths, invert: bool | Sequence[bool] = False) -> torch.Tensor:
    """Matrix ``(4, 4)`` float64, fixed to moving world, mm RAS, of linear transform files, e.g. as ``initial``.

    Args:
        path: one file or several, ordered as for :py:func:`read_transform`.
        invert: per file, whether to take the inverse.

    Raises:
        FileNotFoundError: when a file does not exist.
        ValueError: as :py:func:`read_transform`, and when a transform is not linear.
    """
    paths = [Path(one).expanduser() for one in ensure_tuple(path)]
    flags = ensure_tuple_rep(invert, len(paths))
    transform = itk_composite([_read_itk(one, flag) for one, flag in zip(paths, flags, strict=True)])
    with _naming(paths):
        return itk_to_matrix(transform)


def read_matrix_or_field(path: Paths, fixed: MetaTensor) -> torch.Tensor | SpatialDisplacement:
    """Transform of files: a matrix ``(4, 4)`` float64, mm RAS, where it is linear, else a field on the fixed grid.

    Raises:
        FileNotFoundError, ValueError: as :py:func:`read_transform`.
    """
    paths = [Path(one).expanduser() for one in ensure_tuple(path)]
    if len(paths) == 1 and _counts_voxels(paths[0]):
        return read_transform(paths, fixed)
    transform = itk_composite([_read_itk(one, False) for one in paths])
    with _naming(paths):
        return (
            itk_to_matrix(transform) if transform.IsLinear() else itk_to_field(transform, fixed.affine, fixed.shape[1:])
        )


def write_transform(
    transform: SpatialDisplacement | torch.Tensor | Sequence[SpatialDisplacement | torch.Tensor],
    path: str | Path,
    form: str = "itk",
) -> None:
    """Write a transform; the file appears whole or not at all, and its suffix says which kind.

    ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``: a field, float32 vectors in mm LPS for SimpleITK, ANTs, Slicer.
    ``.h5``, ``.hdf5``, ``.tfm``, ``.txt``: ITK transform in double precision, fields, matrices or several in a row as
    a composite. ``.mat``: a matrix as ANTs has it. ``.npz``: Learn2Reg's float16 field.

    Args:
        transform: field, or ``(4, 4)`` matrix world to world, mm RAS, or several; points meet the first one first.
        path: the file; its folder is made if need be, an older file is replaced.
        form: ``"learn2reg"`` writes NIfTI in voxels, as Learn2Reg and MONAI take it.

    Raises:
        ValueError: when the suffix is unknown or cannot hold such a transform.
    """
    path = Path(path).expanduser()
    suffix = _suffix(path, (*IMAGE_SUFFIXES, *TRANSFORM_SUFFIXES, ".npz"))
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}.")
    parts = [transform] if isinstance(transform, (SpatialDisplacement, torch.Tensor)) else list(transform)
    in_voxels = form == "learn2reg" or suffix == ".npz"
    _check_content(parts, path, suffix, in_voxels)
    if in_voxels:
        write_voxel_field(parts[0], path)
        return
    if suffix in IMAGE_SUFFIXES:
        image = field_to_itk_image(parts[0])
        with whole_file(path) as unfinished:
            itk.imwrite(image, str(unfinished), compression=suffix != ".nii")
        return
    content = itk_composite([to_itk_transform(part) for part in parts])
    with whole_file(path) as unfinished:
        itk.transformwrite(content, str(unfinished), compression=True)


def _check_content(parts: list[SpatialDisplacement | torch.Tensor], path: Path, suffix: str, in_voxels: bool) -> None:
    fields = [isinstance(part, SpatialDisplacement) for part in parts]
    if suffix in IMAGE_SUFFIXES or in_voxels:
        if fields != [True]:
            raise ValueError(
                f"{path}: this file holds one field. Write matrices and composites as .h5 or .tfm, or join them with "
                "SpatialDisplacement.from_chain."
            )
        if in_voxels and suffix not in VOXEL_SUFFIXES:
            raise ValueError(f"{path}: Learn2Reg's fields are {', '.join(VOXEL_SUFFIXES)}.")
    elif suffix == ".mat" and fields != [False]:
        raise ValueError(f"{path}: .mat holds one matrix. Write fields and composites as .h5 or .tfm.")


def _suffix(path: Path, known: Sequence[str]) -> str:
    for suffix in known:
        if path.name.lower().endswith(suffix):
            return suffix
    raise ValueError(f"{path}: the suffix of a transform must be one of {', '.join(known)}.")


def _counts_voxels(path: Path) -> bool:
    """Whether a file holds a field in voxels; NIfTI stores ITK's vectors on a fifth axis, others on the fourth."""
    if not path.is_file():
        raise FileNotFoundError(f"no transform file at {path}.")
    suffix = _suffix(path, (*IMAGE_SUFFIXES, *TRANSFORM_SUFFIXES, ".npz"))
    if suffix not in (".nii", ".nii.gz"):
        return suffix == ".npz"
    try:
        header = nib.load(path).header
    except Exception as error:  # nibabel raises whatever it likes
        raise ValueError(f"{path}: cannot be read as NIfTI ({error}).") from None
    if header.get_intent()[2] in FOREIGN_INTENTS:
        raise ValueError(
            f"{path}: a transform of unknown type, {header.get_intent()[2]} (NiftyReg or SPM). Convert it to ITK's "
            "displacement field before."
        )
    return len(header.get_data_shape()) == 4


def _read_itk(path: Path, invert: bool) -> itk.Transform:
    if _counts_voxels(path):
        raise ValueError(
            f"{path}: a field in voxels of the fixed image cannot be joined with others or inverted on reading. "
            "Read it alone, then use SpatialDisplacement.from_chain or inverse."
        )
    is_field = _suffix(path, (*IMAGE_SUFFIXES, *TRANSFORM_SUFFIXES)) in IMAGE_SUFFIXES
    try:
        transform = _read_field_image(path) if is_field else _read_transform_file(path)
    except RuntimeError as error:  # ITK's
        unknown = re.search(r'Could not create an instance of "(\w+)"', str(error))
        kind = f"a transform of unknown type, {unknown[1]}" if unknown else "cannot be read as a transform"
        raise ValueError(
            f"{path}: {kind}. It should be an ITK transform (affine, B-spline, field, composite)."
        ) from None
    if not invert:
        return transform
    if not transform.IsLinear():
        raise ValueError(f"{path}: only linear transforms are inverted on reading. Give the inverse field's file.")
    return to_itk_transform(torch.linalg.inv(itk_to_matrix(transform)))


def _read_field_image(path: Path) -> itk.Transform:
    header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise ValueError(f"{path}: cannot be read as an image. Is the file complete?")
    header.SetFileName(str(path))
    header.ReadImageInformation()
    kind = header.GetNumberOfComponents(), header.GetNumberOfDimensions()
    if kind != (3, 3):
        raise ValueError(
            f"{path}: a displacement field has 3 components and 3 axes, this image {kind[0]} and {kind[1]}."
        )
    vectors = itk.imread(str(path), itk.Vector[itk.F, 3])
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(_double(vectors))
    return transform


def _read_transform_file(path: Path) -> itk.Transform:
    transforms = itk.transformread(str(path))
    if len(transforms) != 1:
        raise ValueError(
            f"{path}: holds {len(transforms)} transforms that are no composite, so their order is not said."
        )
    if transforms[0].GetInputSpaceDimension() != 3:
        raise ValueError(f"{path}: a {transforms[0].GetTransformTypeAsString()} does not move points of space.")
    return transforms[0]


def _double(image: itk.Image) -> itk.Image:
    copy = itk.Image[itk.Vector[itk.D, 3], 3].New()
    copy.SetRegions(image.GetLargestPossibleRegion())
    copy.Allocate()
    copy.CopyInformation(image)
    itk.array_view_from_image(copy)[:] = itk.array_view_from_image(image)
    return copy


@contextlib.contextmanager
def _naming(paths: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, paths))}: {error}") from None
