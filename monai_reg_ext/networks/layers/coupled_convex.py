# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.layers.box_filter import box_filter

__all__ = ["COUPLINGS", "coupled_convex"]

COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_TIE_BREAK = 1e-5
_CHUNK_ELEMENTS = 1 << 22


def coupled_convex(
    cost: torch.Tensor, labels: torch.Tensor, couplings: Sequence[float] = COUPLINGS, compat: bool = False
) -> torch.Tensor:
    """Smooth displacements of least cost by coupled convex optimisation.

    Alternates a global search per control point, ``argmin_l cost[l] + c |d_l - u|^2``, with a smoothing of the found
    displacements ``u``, while the coupling *c* grows. Where the cost cannot tell displacements apart, the smallest
    wins.

    Args:
        cost: ``(B, L, i, j, k)`` cost volume.
        labels: ``(L, 3)`` displacement of each label in cells.
        couplings: weights *c*, tuned to features whose cost lies between 0 and about 12.
        compat: the reference's zero-padded smoothing, which shrinks displacements at the border, and its ties, which go
            to the lowest label.

    Returns:
        coarse_ddf ``(B, 3, i, j, k)`` in cells.

    Source: Heinrich, Papiez, Schnabel & Handels, "Non-parametric discrete registration with convex optimisation",
    WBIR 2014.
    """
    coarse_ddf = cost.new_zeros(cost.shape[0], labels.shape[1], *cost.shape[2:])
    # bfloat16 has too few digits to compare costs
    with torch.autocast(cost.device.type, enabled=False):
        for coupling in (0.0 if compat else _TIE_BREAK, *couplings):
            index = _coupled_argmin(cost, labels, coarse_ddf, coupling)
            coarse_ddf = box_filter(labels[index].movedim(-1, 1).contiguous(), compat=compat)
    return coarse_ddf


def _coupled_argmin(
    cost: torch.Tensor, labels: torch.Tensor, coarse_ddf: torch.Tensor, coupling: float
) -> torch.Tensor:
    # |d - u|^2 = |d|^2 - 2 d.u + |u|^2, where the last term is the same for all labels
    flat_cost, flat_ddf = cost.flatten(2), coarse_ddf.flatten(2)
    norms = coupling * labels.square().sum(1, keepdim=True)
    points = flat_cost.shape[2]
    chunk = max(1, _CHUNK_ELEMENTS // (cost.shape[0] * cost.shape[1]))
    found = [
        torch.baddbmm(
            flat_cost[:, :, start : start + chunk] + norms,
            labels.expand(cost.shape[0], -1, -1),
            flat_ddf[:, :, start : start + chunk],
            alpha=-2 * coupling,
        ).argmin(1)
        for start in range(0, points, chunk)
    ]
    return torch.cat(found, 1).view(cost.shape[0], *cost.shape[2:])
