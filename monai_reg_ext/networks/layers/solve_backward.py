# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.networks.layers.warp import identity_grid

__all__ = ["LEAST_DETERMINANT", "newton_step", "solve_backward"]

PROBE = 0.25  # voxels: distance over which the slope of the field is taken
LEAST_DETERMINANT = 0.05  # below, Newton's step would leap
LOST = 10  # times the tolerance
REACH = 3.0  # voxels within which a place that no path led to looks for voxels that end there
CELLS = 128  # per axis, at most, of the table that finds them
CHUNK = 2**19  # points at a time


@torch.no_grad()
def solve_backward(
    ddf: torch.Tensor, targets: torch.Tensor, iterations: int = 30, tolerance: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points that a displacement field moves to given places: ``x + ddf(x) = target``.

    Newton's method on the linearly interpolated field, every point on its own, with steps halved until they help; it
    starts at the inverse of the affine map nearest to the field and, where that leads nowhere because the field folds,
    once more at the voxel that ends nearest to the target. Unlike fixed-point iteration it also converges where
    the field stretches space to more than double. Outside its grid the field goes on as at its border.

    Without gradients; :py:func:`invert_ddf` has them. On the CPU, for float32, a compiled twin does the work, which
    starts at the solution for the target before where that is a neighbour.

    Args:
        ddf: ``(3, I, J, K)`` in voxels.
        targets: ``(N, 3)`` in voxels of the same grid, float32 or float64.
        iterations: most steps of one point.
        tolerance: a point stops when it arrives within so many voxels of its target.

    Returns:
        Points ``(N, 3)`` in voxels and how far from its target each one arrives, ``(N,)`` voxels; both in the dtype of
        ``targets``. Where the field folds several points may be right, and one is returned.
    """
    start = torch.linalg.inv(_nearest_affine(ddf))
    twin = compiled_twin("solve_backward", ddf, targets)
    solve = _solve_in_chunks if twin is None else twin.solve_points
    points, distances = solve(ddf, targets, start, iterations, tolerance)
    lost = (distances > LOST * tolerance).nonzero()[:, 0]
    if len(lost):
        nearest, found = _voxels_that_end_nearest(ddf, targets[lost])
        lost = lost[found]
        again, left = _solve(ddf, targets[lost], nearest, iterations, tolerance)
        better = left < distances[lost]
        points[lost[better]], distances[lost[better]] = again[better], left[better]
    return points, distances


def newton_step(columns: tuple[torch.Tensor, torch.Tensor, torch.Tensor], missing: torch.Tensor) -> torch.Tensor:
    """``J^-1 missing`` by Cramer's rule; ``missing`` itself where the field all but folds.

    Args:
        columns: of the Jacobian J of ``x + ddf(x)``, the derivatives along axes 0, 1 and 2, ``(N, 3)`` each.
        missing: ``(N, 3)``, what ``x + ddf(x)`` is short of the target.

    Returns:
        ``(N, 3)``.
    """
    a, b, c = columns
    b_c, c_a, a_b = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    determinant = (a * b_c).sum(1, keepdim=True)
    regular = determinant > LEAST_DETERMINANT
    step = torch.stack([(missing * normal).sum(1) for normal in (b_c, c_a, a_b)], dim=1)
    # the division is made safe first: a gradient passes through both sides of a choice
    return torch.where(regular, step / torch.where(regular, determinant, 1), missing)


def _solve_in_chunks(
    ddf: torch.Tensor, targets: torch.Tensor, start: torch.Tensor, iterations: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    start = start.to(targets)
    solved = [
        _solve(ddf, chunk, chunk @ start[:3, :3].T + start[:3, 3], iterations, tolerance)
        for chunk in targets.split(CHUNK)
    ]
    points, distances = map(torch.cat, zip(*solved, strict=True))
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
        step = newton_step(_columns(ddf, here, targets[on_the_way] - here - short_of), short_of)
        there = here + length[on_the_way, None] * step
        still_missing = targets[on_the_way] - there - _displacement(ddf, there)
        better = still_missing.norm(dim=1) < distance[on_the_way]
        length[on_the_way] = torch.where(better, (2 * length[on_the_way]).clamp(max=1), length[on_the_way] / 2)
        gained = on_the_way[better]
        points[gained], missing[gained] = there[better], still_missing[better]
        distance[gained] = missing[gained].norm(dim=1)
    return points, distance


def _columns(ddf: torch.Tensor, points: torch.Tensor, displacement: torch.Tensor) -> tuple[torch.Tensor, ...]:
    probes = torch.cat([points + PROBE * axis for axis in torch.eye(3).to(points)])
    slopes = (_displacement(ddf, probes).reshape(3, -1, 3) - displacement) / PROBE
    return tuple(slopes + torch.eye(3).to(points)[:, None])


def _displacement(ddf: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return sample_points(ddf[None], points[None].to(ddf.device))[0].to(points)


def _voxels_that_end_nearest(ddf: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels ``(M, 3)``, and the indices ``(M,)`` of the targets that they belong to: those with any in reach."""
    ends = (identity_grid(ddf.shape[1:], ddf)[0] + ddf).flatten(1)
    candidates = _near(ends, targets.to(ends).T).nonzero()[:, 0]
    if not len(candidates):
        return targets[:0], torch.zeros(0, dtype=torch.int64, device=targets.device)
    tree = cKDTree(ends[:, candidates].T.cpu().numpy())
    distances, index = tree.query(targets.cpu().numpy(), distance_upper_bound=2 * REACH)
    found = torch.from_numpy(distances).isfinite().nonzero()[:, 0]
    voxels = candidates.cpu()[torch.from_numpy(index)[found]]
    nearest = torch.stack(torch.unravel_index(voxels, ddf.shape[1:]), dim=1)
    return nearest.to(targets), found.to(targets.device)


def _near(positions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Which of the positions ``(3, V)`` lie within reach of any target ``(3, N)``, and some more.

    A table of cells takes the place of a search tree over all voxels, which takes many seconds to grow.
    """
    lowest, highest = targets.amin(1), targets.amax(1)
    edge = ((highest - lowest) / CELLS).clamp(min=REACH)
    lowest -= edge
    counts = ((highest - lowest) / edge).floor().long() + 2
    size = (counts + 2).tolist()  # what lies beyond falls into the outermost cells, which no target marks

    def cells(points: torch.Tensor) -> torch.Tensor:
        index = torch.zeros(points.shape[1], dtype=torch.int64, device=points.device)
        for axis, extent in enumerate(size):
            cell = ((points[axis] - lowest[axis]) / edge[axis]).floor_().clamp_(-1, extent - 2)
            index.mul_(extent).add_(cell.long()).add_(1)
        return index

    table = torch.zeros(size, device=positions.device)
    table.view(-1)[cells(targets)] = 1
    return F.max_pool3d(table[None], 3, stride=1, padding=1).view(-1)[cells(positions)] > 0


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
