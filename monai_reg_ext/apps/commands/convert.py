# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.transform_inputs import holds_transform, read_field, read_image, read_matrix
from monai_reg_ext.transforms.transform_files import write_transform

__all__ = ["convert"]


def convert(source: Any, target: str, *, fixed: str | None = None, form: str = "itk") -> None:
    """Write a transform in another form.

    monai-reg convert IN OUT [--fixed IMAGE] [--form learn2reg]

    IN: any transform file, or several in a row (A,B; see compose). OUT, by its suffix:
      .nii.gz .nii .nrrd .mha   a field in mm LPS for SimpleITK, ANTs and Slicer; with --form learn2reg
                                a NIfTI field in voxels for Learn2Reg and MONAI
      .npz                      Learn2Reg's float16 field
      .h5 .tfm .txt             an ITK transform; linear ones stay linear
      .mat                      a linear transform for ANTs

      --fixed IMAGE   the image whose space is moved; needed when IN has no grid (linear transforms,
                      composites, .npz), and otherwise to have the field on another grid

    Example: monai-reg convert disp_0001_0002.npz field.nii.gz --fixed fixed.nii.gz
    """
    files = file_list(source)
    reference = read_image(fixed, "--fixed")
    # a grid that was asked for makes a field out of a matrix, unless the file can hold nothing else
    keeps_matrix = holds_transform(target) and (reference is None or str(target).lower().endswith(".mat"))
    matrix = read_matrix(files) if keeps_matrix else None
    write_transform(read_field(files, reference) if matrix is None else matrix, str(target), form)
    print(f"{target}: {'a field' if matrix is None else 'a matrix'}")
