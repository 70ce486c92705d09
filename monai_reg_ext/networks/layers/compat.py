# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["reference_stretch"]


def reference_stretch(field: torch.Tensor) -> torch.Tensor:
    """Factor by which convexAdam overshoots when it samples along a field.

    It divides voxels by ``(N - 1) / 2`` but samples with ``align_corners=False``, which multiplies by ``N / 2``; its
    fields therefore come out too short by the same factor.

    Args:
        field: ``(B, D, *size)``.

    Returns:
        ``N / (N - 1)`` per axis, shaped ``(1, D, 1, ...)``.
    """
    size = torch.tensor(field.shape[2:], device=field.device, dtype=field.dtype)
    return (size / (size - 1).clamp(min=1)).view([1, -1] + [1] * len(size))
