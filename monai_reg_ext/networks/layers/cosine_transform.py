# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from functools import lru_cache

import torch

from monai_reg_ext.networks.layers.multiply_axis import multiply_axis

__all__ = ["cosine_transform"]


def cosine_transform(field: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Orthonormal cosine transform (DCT-II) of every spatial axis; ``inverse`` is the way back.

    Its waves are the eigenvectors of :py:func:`graph_laplacian`. One small matrix product for each axis: on grids of
    some ten cells per axis faster than a Fourier transform.

    Args:
        field: ``(B, C, *size)``, float32 or float64.
        inverse: from waves to cells.

    Returns:
        The same shape.
    """
    for dim in range(2, field.dim()):
        basis = _basis(field.shape[dim], field.dtype, field.device)
        field = multiply_axis(field, dim, basis.T if inverse else basis)
    return field


@lru_cache(maxsize=32)
def _basis(extent: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``(wave, cell)``."""
    # the stored matrix may be of use in a graph later
    with torch.inference_mode(False):
        cells = torch.arange(extent, dtype=torch.float64)
        waves = torch.cos(torch.pi / extent * torch.outer(cells, cells + 0.5)) * (2 / extent) ** 0.5
        waves[0] *= 0.5**0.5
        return waves.to(device, dtype)
