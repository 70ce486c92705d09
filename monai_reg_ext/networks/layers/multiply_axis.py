# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["multiply_axis"]


def multiply_axis(field: torch.Tensor, dim: int, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply one axis of a field by a matrix.

    Args:
        field: any number of axes, of which axis ``dim`` has the extent *n*.
        dim: counted from the front.
        matrix: ``(m, n)``, the field's dtype.

    Returns:
        The field with *m* in the place of *n*. Nothing is moved in memory before or after.
    """
    if dim == field.dim() - 1:
        return field @ matrix.T
    # whatever lies behind the axis is one row for the matrix
    product = matrix @ field.flatten(dim + 1)
    return product.view(*field.shape[:dim], len(matrix), *field.shape[dim + 1 :])
