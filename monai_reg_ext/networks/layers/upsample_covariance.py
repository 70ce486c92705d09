# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS
from monai_reg_ext.networks.layers.upsample_ddf import upsample_ddf

__all__ = ["upsample_covariance"]


def upsample_covariance(
    covariance: torch.Tensor, spacing: Sequence[int], size: Sequence[int], compat: bool = False
) -> torch.Tensor:
    """Turn covariances of displacements on the control grid into those on the voxel grid.

    Every entry is interpolated as :py:func:`upsample_ddf` interpolates a component. Means of covariances are
    covariances, so that no variance becomes negative.

    Args:
        covariance: ``(B, 6, i, j, k)`` in cells squared, entries 00, 01, 02, 11, 12, 22.
        spacing: voxels per cell along each axis.
        size: extent of the voxel grid.
        compat: see :py:func:`upsample_ddf`.

    Returns:
        ``(B, 6, *size)`` in voxels squared.

    Raises:
        ValueError: when the cells are not those of ``size``.
    """
    # two fields of three components, each of which upsample_ddf multiplies by the spacing of its axis
    wanted = [spacing[row] * spacing[column] for row, column in zip(ROWS, COLUMNS, strict=True)]
    factors = covariance.new_tensor([area / step for area, step in zip(wanted, [*spacing, *spacing], strict=True)])
    halves = (covariance * factors.view(1, 6, 1, 1, 1)).reshape(-1, 3, *covariance.shape[2:])
    return upsample_ddf(halves, spacing, size, compat).view(len(covariance), 6, *size)
