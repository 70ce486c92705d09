# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["diffusion"]


def diffusion(field: torch.Tensor) -> torch.Tensor:
    """How rough a field is: mean squared difference of neighbours over all components, added up over the axes.

    Args:
        field: ``(B, C, i, j, k)``; along an axis of one cell there are no neighbours.

    Returns:
        ``(B,)`` in squares of the field's unit.
    """
    squares = [field.diff(dim=dim).square() for dim in (2, 3, 4) if field.shape[dim] > 1]
    return sum((square.flatten(1).mean(1) for square in squares), start=field.new_zeros(len(field)))
