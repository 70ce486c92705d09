# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.transform_inputs import holds_transform, read_field, read_image, read_matrix
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.transforms.transform_files import write_transform

__all__ = ["compose"]


def compose(*files: str, fixed: str | None = None, form: str = "itk") -> None:
    """Join transforms into one.

    monai-reg compose A B ... OUT [--fixed IMAGE]

    The order is that of antsApplyTransforms: a point of fixed space is moved by A first, then by B.
    So the last one acts first on the moving scan: for an affine alignment followed by a deformable one,
    A is the field and B the affine transform. Images are interpolated once.

      --fixed IMAGE     grid of the result; by default that of A, when it is a field
      --form learn2reg  write voxels in place of mm, see convert

    Linear transforms alone, written as .h5 .tfm .txt or .mat, stay linear. Fields in voxels
    (ddf.nii.gz, .npz) cannot be joined; convert them before.

    Example: monai-reg compose 1Warp.nii.gz 0GenericAffine.mat total.nii.gz --fixed fixed.nii.gz
    """
    *sources, target = [path for file in files for path in file_list(file)] or [""]
    if len(sources) < 2:
        raise UsageError("compose needs at least two transforms and the file to be written.")
    reference = read_image(fixed, "--fixed")
    matrix = read_matrix(sources) if holds_transform(target) and reference is None else None
    write_transform(read_field(sources, reference) if matrix is None else matrix, target, form)
    print(f"{target}: {'a field' if matrix is None else 'a matrix'}")
