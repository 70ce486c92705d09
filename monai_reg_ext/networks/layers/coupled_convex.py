# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.cost_volume import CostVolume
from monai_reg_ext.networks.layers.coupled_softmin import coupled_softmin
from monai_reg_ext.networks.layers.fill_outside import FillOutside

__all__ = ["COUPLINGS", "coupled_convex"]

COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_TIE_BREAK = 1e-5


def coupled_convex(
    cost_volume: CostVolume,
    couplings: Sequence[float] = COUPLINGS,
    sharpness: float | None = None,
    compat: bool = False,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Smooth displacements of least cost by coupled convex optimisation.

    Alternates a global search per control point over ``cost[l] + c |d_l - u|^2`` with a smoothing of the found
    displacements ``u``, first with ``c = 0``, then while the coupling *c* grows. Where the cost cannot tell
    displacements apart, the smallest wins.

    Args:
        cost_volume: costs of all displacements; a tensor becomes one by :py:class:`DenseCostVolume`.
        couplings: weights *c*, tuned to features whose cost lies between 0 and about 12.
        sharpness: ``None`` takes the displacement of least cost and has no gradients. A number *a* takes the expected
            displacement under ``softmax_l(-a (cost[l] + c |d_l - u|^2))``, with gradients to what the costs are made
            of; 20 to 100 comes close to the least cost for features as above.
        compat: the reference's zero-padded smoothing, which shrinks displacements at the border, and its ties, which go
            to the lowest label.
        mask: ``(B, 1, i, j, k)``, not 0 where a displacement may be believed, of all items of the volume. Elsewhere
            the nearest one inside takes its place before each smoothing, as beyond the faces of the grid.

    Returns:
        coarse_ddf ``(B, 3, i, j, k)`` in cells, float32, or float64 if the costs are. Memory beyond the volume's: some
        chunks and, with ``sharpness``, ten values per point and pass.

    Raises:
        ValueError: when the sharpness is not positive, or the mask is not on the volume's grid.

    Source: Heinrich, Papiez, Schnabel & Handels, "Non-parametric discrete registration with convex optimisation",
    WBIR 2014; with sharpness Siebert & Heinrich, "Learn to fuse input features for large-deformation registration with
    differentiable convex-discrete optimisation", WBIR 2022.
    """
    if mask is not None and mask.shape != (cost_volume.batch, 1, *cost_volume.size):
        raise ValueError(
            f"coupled_convex needs a mask of shape {(cost_volume.batch, 1, *cost_volume.size)}, one for every item of "
            f"the volume, got {tuple(mask.shape)}."
        )
    fill = FillOutside(mask)
    if sharpness is None:
        return _coupled_argmin(cost_volume, (0.0, *couplings), 0.0 if compat else _TIE_BREAK, compat, fill)
    if not sharpness > 0:
        raise ValueError(f"sharpness must be > 0 so that less cost means more probable, got {sharpness}.")
    return coupled_softmin(cost_volume, couplings, sharpness, compat, fill)


@torch.no_grad()
def _coupled_argmin(
    cost_volume: CostVolume, couplings: Sequence[float], tie_break: float, compat: bool, fill: FillOutside
) -> torch.Tensor:
    coarse_ddf = cost_volume.labels.new_zeros(cost_volume.batch, 3, *cost_volume.size)
    # bfloat16 has too few digits to compare costs
    with torch.autocast(coarse_ddf.device.type, enabled=False):
        for coupling in couplings:
            label = _best_label(cost_volume, coarse_ddf, coupling, tie_break)
            found = cost_volume.labels[label].movedim(-1, 1).contiguous()
            coarse_ddf = box_filter(fill(found), compat=compat)
    return coarse_ddf


def _best_label(cost_volume: CostVolume, coarse_ddf: torch.Tensor, coupling: float, tie_break: float) -> torch.Tensor:
    best_cost = torch.full_like(coarse_ddf[:, 0], torch.inf)
    best_label = torch.zeros_like(best_cost, dtype=torch.int32)
    for start, cost in cost_volume:
        labels = cost_volume.labels[start : start + cost.shape[1]]
        update_best(cost, labels, coarse_ddf, coupling, tie_break, start, best_cost, best_label)
    return best_label


def update_best(
    cost: torch.Tensor,
    labels: torch.Tensor,
    coarse_ddf: torch.Tensor,
    coupling: float,
    tie_break: float,
    start: int,
    best_cost: torch.Tensor,
    best_label: torch.Tensor,
) -> None:
    """Let some displacements compete with the best so far; of equal ones the first stays.

    The term ``coupling * |u|^2`` is left out, since all displacements share it.

    Args:
        cost: ``(B, l, i, j, k)``.
        labels: ``(l, 3)`` in cells.
        coarse_ddf: ``(B, 3, i, j, k)`` contiguous, in cells.
        coupling: weight of the squared distance between label and field.
        tie_break: weight of the squared length of the label.
        start: number of the first of these labels.
        best_cost: ``(B, i, j, k)`` contiguous, updated.
        best_label: ``(B, i, j, k)`` contiguous int32, updated.
    """
    twin = compiled_twin("coupled_convex", cost, coarse_ddf)
    if twin is not None:
        return twin.update_best(cost, labels, coarse_ddf, coupling, tie_break, start, best_cost, best_label)
    total = torch.baddbmm(
        cost.flatten(2), labels.expand(len(cost), -1, -1), coarse_ddf.flatten(2), alpha=-2 * coupling
    ).add_((coupling + tie_break) * labels.square().sum(1, keepdim=True))
    lowest, label = (found.view_as(best_cost) for found in total.min(1))
    better = lowest < best_cost
    torch.where(better, lowest, best_cost, out=best_cost)
    torch.where(better, label.int() + start, best_label, out=best_label)
