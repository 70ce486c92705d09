# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import torch
from scipy.spatial import cKDTree

from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.conventions import grid_voxels

__all__ = ["solve_backward"]

PROBE = 0.25  # voxels: distance over which the slope of the field is taken
LEAST_DETERMINANT = 0.05  # below, Newton's step would leap
LOST = 10  # times the tolerance
CHUNK = 2**19  # points at a time


def solve_backward(
    ddf: torch.Tensor, targets: torch.Tensor, iterations: int = 30, tolerance: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points that a displacement field moves to given places: ``x + ddf(x) = target``.

    Newton's method on the linearly interpolated field, every point on its own, with steps halved until they help; it
    starts at the inverse of the affine map nearest to the field and, where that leads nowhere because the field folds,
    once more at the voxel that ends nearest to the target. Unlike fixed-point iteration it also converges where
    the field stretches space to more than double. Outside its grid the field goes on as at its border.

    Args:
        ddf: ``(3, I, J, K)`` in voxels.
        targets: ``(N, 3)`` in voxels of the same grid, float32 or float64.
        iterations: most steps of one point.
        tolerance: a point stops when it arrives within so many voxels of its target.

    Returns:
        Points ``(N, 3)`` in voxels and how far from its target each one arrives, ``(N,)`` voxels; both in the dtype of
        ``targets``. Where the field folds several points may be right, and one is returned.
    """
    start = torch.linalg.inv(_nearest_affine(ddf)).to(targets)
    solved = [
        _solve(ddf, chunk, chunk @ start[:3, :3].T + start[:3, 3], iterations, tolerance)
        for chunk in targets.split(CHUNK)
    ]
    points, distances = map(torch.cat, zip(*solved, strict=True))
    lost = (distances > LOST * tolerance).nonzero()[:, 0]
    if len(lost):
        start = _voxel_that_ends_nearest(ddf, targets[lost])
        again, left = _solve(ddf, targets[lost], start, iterations, tolerance)
        better = left < distances[lost]
        points[lost[better]], distances[lost[better]] = again[better], left[better]
    return points, distances


def _solve(
    ddf: torch.Tensor, targets: torch.Tensor, points: torch.Tensor, iterations: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    missing = targets - points - _displacement(ddf, points)
    distance = missing.norm(dim=1)
    length = torch.ones_like(distance)
    for _ in range(iterations):
        on_the_way = (distance > tolerance).nonzero()[:, 0]
        if not len(on_the_way):
            break
        here, short_of = points[on_the_way], missing[on_the_way]
        step = _newton_step(ddf, here, targets[on_the_way] - here - short_of, short_of)
        there = here + length[on_the_way, None] * step
        still_missing = targets[on_the_way] - there - _displacement(ddf, there)
        better = still_missing.norm(dim=1) < distance[on_the_way]
        length[on_the_way] = torch.where(better, (2 * length[on_the_way]).clamp(max=1), length[on_the_way] / 2)
        gained = on_the_way[better]
        points[gained], missing[gained] = there[better], still_missing[better]
        distance[gained] = missing[gained].norm(dim=1)
    return points, distance


def _newton_step(
    ddf: torch.Tensor, points: torch.Tensor, displacement: torch.Tensor, missing: torch.Tensor
) -> torch.Tensor:
    """``J^-1 missing`` by Cramer's rule; ``missing`` itself where the field all but folds."""
    probes = torch.cat([points + PROBE * axis for axis in torch.eye(3).to(points)])
    slopes = (_displacement(ddf, probes).reshape(3, -1, 3) - displacement) / PROBE
    a, b, c = slopes + torch.eye(3).to(points)[:, None]  # columns of the Jacobian
    b_c, c_a, a_b = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    determinant = (a * b_c).sum(1, keepdim=True)
    step = torch.stack([(missing * normal).sum(1) for normal in (b_c, c_a, a_b)], dim=1) / determinant
    return torch.where(determinant > LEAST_DETERMINANT, step, missing)


def _displacement(ddf: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    positions = points.T.reshape(1, 3, -1, 1, 1).to(ddf.device)
    return sample(ddf[None], positions)[0].reshape(3, -1).T.to(points)


def _voxel_that_ends_nearest(ddf: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    size = ddf.shape[1:]
    ends = grid_voxels(size, torch.eye(4, dtype=torch.float64), ddf).flatten(1).T
    _, index = cKDTree(ends.cpu().numpy(), balanced_tree=False).query(targets.cpu().numpy())
    return torch.stack(torch.unravel_index(torch.from_numpy(index), size), dim=1).to(targets)


def _nearest_affine(ddf: torch.Tensor) -> torch.Tensor:
    """``(4, 4)`` least-squares fit to ``x + ddf(x)`` on some ten voxels per axis; the identity where it mirrors."""
    axes = [torch.arange(0, extent, max(1, math.ceil(extent / 10))) for extent in ddf.shape[1:]]
    voxels = torch.cartesian_prod(*axes)
    known = torch.cat([voxels, torch.ones(len(voxels), 1)], dim=1).double()
    moved = voxels + ddf[(slice(None), *voxels.to(ddf.device).unbind(1))].T.cpu().double()
    matrix = torch.eye(4, dtype=torch.float64)
    fit = torch.linalg.lstsq(known, moved, driver="gelsd").solution.T
    if torch.linalg.det(fit[:, :3]) > LEAST_DETERMINANT:
        matrix[:3] = fit
    return matrix
