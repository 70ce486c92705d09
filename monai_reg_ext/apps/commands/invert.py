# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import torch

from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.inverse_field import inverse_field
from monai_reg_ext.apps.transform_inputs import holds_transform, read_image, read_matrix
from monai_reg_ext.transforms.transform_files import write_transform

__all__ = ["invert"]


def invert(
    field: Any,
    target: str,
    *,
    moving: str | None = None,
    fixed: str | None = None,
    form: str = "itk",
    allow_folding: bool = False,
) -> None:
    """Write the transform that leads back.

    monai-reg invert FIELD OUT [--moving IMAGE] [--fixed IMAGE] [--allow_folding]

    FIELD brings the moving scan into the fixed one's space; OUT brings the fixed scan into the moving
    one's. Any transform file, or several in a row (A,B). The mean residual is printed: how far, in
    voxels, one ends from where one started when going back and forth. A field that folds has no
    inverse; the message says where it folds.

      --moving IMAGE    grid of the inverse; by default that of FIELD
      --fixed IMAGE     grid of FIELD, when the file has none (composites, .npz)
      --form learn2reg  write voxels in place of mm, see convert
      --allow_folding   invert as well as can be

    Example: monai-reg invert output/fixed__moving/field.nii.gz inverse.nii.gz --moving moving.nii.gz
    """
    files = file_list(field)
    matrix = read_matrix(files) if holds_transform(target) and moving is None else None
    if matrix is not None:
        write_transform(torch.linalg.inv(matrix), str(target))
        print(f"{target}: a matrix")
        return
    images = read_image(fixed, "--fixed"), read_image(moving, "--moving")
    inverse, residual = inverse_field(files, *images, allow_folding=bool(allow_folding))
    write_transform(inverse, str(target), form)
    print(f"{target}: mean residual {residual:.4g} voxels")
