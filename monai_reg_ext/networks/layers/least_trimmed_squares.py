# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["LINEAR_KINDS", "fit_linear", "least_trimmed_squares"]

LINEAR_KINDS = ("rigid", "similarity", "affine")
_LEAST_POINTS = {"rigid": 3, "similarity": 3, "affine": 4}
_FLAT = 1e12


def fit_linear(
    points: torch.Tensor, targets: torch.Tensor, kind: str = "affine", weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Linear transform that takes points to their targets with the least weighted sum of squared distances.

    Args:
        points: ``(N, 3)``.
        targets: ``(N, 3)``, in the same unit.
        kind: ``"rigid"`` (rotation and shift), ``"similarity"`` (with one scale) or ``"affine"``.
        weights: ``(N,)``, not negative; ``None`` weighs all alike.

    Returns:
        ``(4, 4)`` float64. A rotation is never a reflection.

    Raises:
        ValueError: for an unknown kind, fewer points with weight than determine it, or affine points in one plane.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991; for
    rotations the same as Kabsch's.
    """
    points, targets = points.to(torch.float64), targets.to(torch.float64)
    weights = points.new_ones(len(points)) if weights is None else weights.to(points)
    _check(points, targets, weights, kind)
    share = (weights / weights.sum())[:, None]
    centre, target_centre = (share * points).sum(0), (share * targets).sum(0)
    offsets, target_offsets = points - centre, targets - target_centre
    spread = offsets.T @ (share * offsets)
    covariance = target_offsets.T @ (share * offsets)
    linear = _affine(covariance, spread) if kind == "affine" else _rotation(covariance, spread, kind == "similarity")
    matrix = torch.eye(4, dtype=torch.float64, device=points.device)
    matrix[:3, :3] = linear
    matrix[:3, 3] = target_centre - linear @ centre
    return matrix


def least_trimmed_squares(
    points: torch.Tensor,
    targets: torch.Tensor,
    kind: str = "affine",
    weights: torch.Tensor | None = None,
    fraction: float = 0.5,
    rounds: int = 15,
) -> torch.Tensor:
    """Linear transform of the best part of all correspondences, whatever the others say.

    Fits all, keeps those that come closest to their targets, fits these, and so on until the choice no longer changes.

    Args:
        points, targets, kind, weights: see :py:func:`fit_linear`.
        fraction: part of the weight that is kept, above 0 and at most 1.
        rounds: at most so many choices.

    Returns:
        ``(4, 4)`` float64.

    Raises:
        ValueError: for a fraction out of range, and as :py:func:`fit_linear`.

    Source: Rousseeuw & Van Driessen, "Computing LTS regression for large data sets", 2006, concentration steps.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}.")
    points, targets = points.to(torch.float64), targets.to(torch.float64)
    weights = points.new_ones(len(points)) if weights is None else weights.to(points)
    matrix = fit_linear(points, targets, kind, weights)
    kept = torch.ones_like(weights, dtype=torch.bool)
    for _ in range(rounds if fraction < 1 else 0):
        chosen = _closest(_distances(matrix, points, targets), weights, fraction)
        if torch.equal(chosen, kept):
            break
        kept = chosen
        matrix = fit_linear(points[kept], targets[kept], kind, weights[kept])
    return matrix


def _distances(matrix: torch.Tensor, points: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (points @ matrix[:3, :3].T + matrix[:3, 3] - targets).square().sum(1)


def _closest(distances: torch.Tensor, weights: torch.Tensor, fraction: float) -> torch.Tensor:
    order = distances.argsort(stable=True)
    before = weights[order].cumsum(0) - weights[order]
    kept = torch.zeros_like(weights, dtype=torch.bool)
    kept[order] = before < fraction * weights.sum()
    return kept


def _affine(covariance: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    if torch.linalg.cond(spread) > _FLAT:
        raise ValueError("an affine transform is not determined by points that lie in one plane.")
    return torch.linalg.solve(spread, covariance, left=False)


def _rotation(covariance: torch.Tensor, spread: torch.Tensor, scaled: bool) -> torch.Tensor:
    left, stretch, right = torch.linalg.svd(covariance)
    handed = torch.ones_like(stretch)
    handed[2] = torch.linalg.det(left @ right).sign()
    scale = (stretch * handed).sum() / spread.trace() if scaled else 1.0
    return scale * (left * handed) @ right


def _check(points: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, kind: str) -> None:
    if kind not in LINEAR_KINDS:
        raise ValueError(f"kind must be one of {LINEAR_KINDS}, got {kind!r}.")
    if points.shape != targets.shape or points.shape[1:] != (3,) or weights.shape != points.shape[:1]:
        raise ValueError(
            f"a fit needs points and targets (N, 3) and weights (N,), got {tuple(points.shape)}, "
            f"{tuple(targets.shape)} and {tuple(weights.shape)}."
        )
    count = int((weights > 0).sum())
    if count < _LEAST_POINTS[kind]:
        raise ValueError(f"{kind} needs at least {_LEAST_POINTS[kind]} points with weight, got {count}.")
