# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""What becomes of rounding: the same registration several times."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import numpy as np
import torch
from speed_methods import Ours

__all__ = ["agreement"]

NUDGE_CELLS = 1e-6
EQUAL_CELLS = 1e-4


def agreement(fixed: torch.Tensor, moving: torch.Tensor) -> list[dict[str, Any]]:
    """How far registrations differ that should not: run again, without compiled kernels, after a tiny nudge.

    Args:
        fixed: image ``(I, J, K)``.
        moving: image ``(I, J, K)``.

    Returns:
        For each of the others, compared with the first: ``what`` it is; ``equal``, the share of control points that
        differ by less than 1e-4 cells after search and inverse consistency; ``coarse_max``, the largest difference
        there in cells; ``median``, ``99 %``, ``99.9 %`` of the lengths of the final differences in voxels;
        ``bit_equal``, whether there is no difference at all.
    """
    pair = fixed, moving
    reference = _fields(pair)
    others = {"run again": _fields(pair)}
    with mock.patch.dict(os.environ, {"MONAI_REG_NUMBA": "0"}):
        others["plain torch instead of compiled kernels"] = _fields(pair)
    others[f"coarse field nudged by {NUDGE_CELLS:g} cells"] = _fields(pair, NUDGE_CELLS)
    return [{"what": what, **_differences(reference, fields)} for what, fields in others.items()]


def _fields(pair: tuple[torch.Tensor, torch.Tensor], nudge: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Field of the search in cells, with normal noise of this size added, and the final one in voxels."""
    method, coarse = Ours(), []
    estimator = method.network.estimator
    search = estimator.forward

    def nudged(*features: torch.Tensor) -> torch.Tensor:
        field = search(*features)
        coarse.append(field + nudge * torch.randn(field.shape, generator=torch.Generator().manual_seed(0)))
        return coarse[0]

    with mock.patch.object(estimator, "forward", nudged):
        ddf = method.register(*pair)
    return coarse[0], ddf


def _differences(
    reference: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float | bool]:
    coarse = (reference[0] - other[0]).abs().amax(1)
    final = torch.linalg.vector_norm(reference[1] - other[1], dim=0).numpy()
    median, most, nearly_all = np.quantile(final, (0.5, 0.99, 0.999)).tolist()
    return {
        "equal": (coarse < EQUAL_CELLS).float().mean().item(),
        "coarse_max": coarse.max().item(),
        "median": median,
        "99 %": most,
        "99.9 %": nearly_all,
        "bit_equal": all(torch.equal(*fields) for fields in zip(reference, other, strict=True)),
    }
