# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from monai_reg_ext.apps.transform_inputs import read_field, read_matrix
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = ["inverse_field"]


def inverse_field(
    files: Sequence[str], fixed: MetaTensor | None, moving: MetaTensor | None, allow_folding: bool
) -> tuple[SpatialDisplacement, float]:
    """The field that leads back from moving to fixed space, and its mean residual in voxels.

    Args:
        files: transform files, see :py:func:`~monai_reg_ext.apps.transform_inputs.read_field`.
        fixed: image of the forward field's grid, where the files do not have one.
        moving: image of the grid that the inverse is wanted on; by default that of the forward field.
        allow_folding: invert as well as can be what folds.

    Raises:
        ValueError: when the field folds, with the place.
    """
    matrix = read_matrix(files)
    if matrix is not None and moving is not None:
        return SpatialDisplacement.from_chain([torch.linalg.inv(matrix)], moving.affine, moving.shape[1:]), 0.0
    grid = {} if moving is None else {"affine": moving.affine, "size": tuple(moving.shape[1:])}
    return read_field(files, fixed).inverse(**grid, allow_folding=allow_folding)
