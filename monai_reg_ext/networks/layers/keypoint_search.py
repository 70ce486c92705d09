# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.layers.neighbour_graph import NeighbourGraph
from monai_reg_ext.networks.layers.sampled_cost import sampled_cost
from monai_reg_ext.networks.layers.warp import sample

__all__ = ["graph_convex", "keypoint_cost"]

_TIE_BREAK = 1e-5


def keypoint_cost(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    points: torch.Tensor,
    labels: Sequence[torch.Tensor],
    start: torch.Tensor | None = None,
    patch: float = 2.0,
) -> torch.Tensor:
    """Cost of every displacement of a window at scattered points: squared feature differences of small patches.

    A patch is a point and six more around it along the axes; the mean is taken over them.

    Args:
        fixed: ``(1, C, i, j, k)`` features.
        moving: ``(1, C, i', j', k')`` features.
        points: ``(N, 3)`` in voxels of the fixed features, which the moving ones' coincide with at voxel 0.
        labels: displacements along each axis in ascending order and equal steps, three tensors, in voxels.
        start: ``(N, 3)``, displacement that the window of each point lies around; 0 by default.
        patch: distance from the point to the others in voxels; 0 takes the point alone.

    Returns:
        ``(N, l_0, l_1, l_2)`` float32.
    """
    start = torch.zeros_like(points) if start is None else start
    displacements = torch.cartesian_prod(*labels)
    unit = patch * torch.eye(3).to(points)
    offsets = [points.new_zeros(3), *unit, *-unit] if patch else [points.new_zeros(3)]
    total = 0
    for offset in offsets:
        places = _as_grid(points + offset)
        total = total + sampled_cost(sample(fixed, places), moving, places + _as_grid(start), displacements)
    return (total / len(offsets))[0, ..., 0, 0].T.unflatten(1, [len(axis) for axis in labels])


def graph_convex(
    cost: torch.Tensor,
    labels: Sequence[torch.Tensor],
    graph: NeighbourGraph,
    couplings: Sequence[float],
    sharpness: float = 20.0,
) -> torch.Tensor:
    """Displacements of scattered points on which neighbours agree: coupled convex optimisation on a graph.

    Alternates a search at each point over ``cost[l] + c |d_l - u|^2`` with *u*, the mean over its neighbours of the
    displacements found, while the coupling *c* grows. At the end the expected displacement under
    ``softmax(-sharpness * (cost + c |d - u|^2))`` is taken, which lies between the labels.

    Args:
        cost: ``(N, l_0, l_1, l_2)``, see :py:func:`keypoint_cost`.
        labels: see :py:func:`keypoint_cost`.
        graph: of the points.
        couplings: weights *c*, per squared unit of the labels.
        sharpness: how much less likely a displacement of more cost is.

    Returns:
        ``(N, 3)`` in the unit of the labels.

    Source: Heinrich, Papiez, Schnabel & Handels, "Non-parametric discrete registration with convex optimisation", WBIR
    2014, on the graph of Heinrich, Handels & Simpson, "Estimating large lung motion in COPD patients by symmetric
    regularised correspondence fields", MICCAI 2015.
    """
    displacements = torch.cartesian_prod(*labels).to(cost)
    total = cost.flatten(1) + _TIE_BREAK * displacements.square().sum(1)
    agreed = displacements[total.argmin(1)]
    for coupling in couplings:
        distances = torch.cdist(graph.mean(agreed), displacements).square()
        coupled = total + coupling * distances
        agreed = displacements[coupled.argmin(1)]
    return torch.softmax(-sharpness * coupled, 1) @ displacements


def _as_grid(points: torch.Tensor) -> torch.Tensor:
    return points.T.reshape(1, 3, -1, 1, 1)
