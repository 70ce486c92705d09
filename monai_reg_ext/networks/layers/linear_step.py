# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.layers.least_trimmed_squares import LINEAR_KINDS
from monai_reg_ext.networks.layers.warp import identity_grid

__all__ = ["linear_step"]

_DAMPING = 1e-6


def linear_step(fixed: torch.Tensor, warped: torch.Tensor, weight: torch.Tensor, kind: str = "affine") -> torch.Tensor:
    """Small linear transform along which warped features come closer to fixed ones: one robust Gauss-Newton step.

    Differences are linearised with the mean gradient of both sides. A voxel counts the less, the more its features
    differ: by ``(m / (m + e))^2`` with *e* its squared difference and *m* the weighted mean of *e*.

    Args:
        fixed: ``(1, C, i, j, k)`` float32, at least 2 voxels along each axis.
        warped: ``(1, C, i, j, k)``, moving features where the transform so far looks for them.
        weight: ``(1, 1, i, j, k)``, not negative, 0 where either is unknown.
        kind: ``"rigid"``, ``"similarity"`` or ``"affine"``.

    Returns:
        ``(4, 4)`` float64, in voxels: with a transform so far *T*, look at ``T @ step @ x`` next. The identity where
        features or weights say nothing. Memory: five times the features.

    Raises:
        ValueError: for an unknown kind.

    Source: Malis, "Improving vision-based control using efficient second-order minimization techniques", ICRA 2004;
    weights of Geman & McClure, 1987.
    """
    basis = _generators(kind).to(fixed.device)
    difference = (warped - fixed)[0]
    weight = weight[0, 0] * _trust(difference.square().sum(0), weight[0, 0])
    gradients = torch.gradient(((fixed + warped) / 2)[0], dim=(1, 2, 3))
    hessian, slope = _normal_equations(gradients, difference, weight)
    hessian, slope = basis @ hessian @ basis.T, basis @ slope
    damping = _DAMPING * hessian.diagonal().mean() + torch.finfo(torch.float64).tiny
    amounts = torch.linalg.solve(hessian + damping * torch.eye(len(basis)).to(hessian), -slope)
    return _about_centre((amounts @ basis).view(3, 4), fixed.shape[2:])


def _trust(energy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    tiny = torch.finfo(energy.dtype).tiny
    mean = (weight * energy).sum() / weight.sum().clamp(min=tiny)
    return ((mean + tiny) / (mean + energy + tiny)).square()


def _normal_equations(
    gradients: Sequence[torch.Tensor], difference: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hessian ``(12, 12)`` and slope ``(12,)``, float64, for a 3 x 4 matrix that acts on :py:func:`_positions`."""
    positions = _positions(weight).flatten(1)
    hessian = torch.zeros((3, 4, 3, 4), dtype=torch.float64, device=weight.device)
    slope = hessian.new_zeros((3, 4))
    for row in range(3):
        slope[row] = positions @ (weight * (gradients[row] * difference).sum(0)).flatten()
        for other in range(row, 3):
            product = (weight * (gradients[row] * gradients[other]).sum(0)).flatten()
            hessian[row, :, other] = hessian[other, :, row] = (positions * product) @ positions.T
    return hessian.view(12, 12), slope.flatten()


def _positions(volume: torch.Tensor) -> torch.Tensor:
    """Homogeneous voxel positions ``(4, i, j, k)``, counted from the centre in half the longest extent."""
    size = volume.shape
    centre = volume.new_tensor([(extent - 1) / 2 for extent in size]).view(3, 1, 1, 1)
    positions = (identity_grid(size, volume)[0] - centre) / _unit(size)
    return torch.cat([positions, torch.ones_like(positions[:1])])


def _unit(size: Sequence[int]) -> float:
    return max(size) / 2


def _about_centre(generator: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Exponential of a 3 x 4 generator, from positions as above to voxels."""
    per_voxel = generator.new_zeros((4, 4))
    per_voxel[:3, :3] = generator[:, :3] / _unit(size)
    per_voxel[:3, 3] = generator[:, 3]
    centre = torch.eye(4).to(generator)
    centre[:3, 3] = generator.new_tensor([(extent - 1) / 2 for extent in size])
    return centre @ torch.linalg.matrix_exp(per_voxel) @ torch.linalg.inv(centre)


def _generators(kind: str) -> torch.Tensor:
    """Directions ``(n, 12)`` in the space of 3 x 4 matrices, written row by row, that a kind of transform may take."""
    if kind not in LINEAR_KINDS:
        raise ValueError(f"kind must be one of {LINEAR_KINDS}, got {kind!r}.")
    entry = torch.eye(12, dtype=torch.float64).view(3, 4, 12)
    if kind == "affine":
        return entry.flatten(0, 1)
    turns = [entry[2, 1] - entry[1, 2], entry[0, 2] - entry[2, 0], entry[1, 0] - entry[0, 1]]
    growth = [entry[0, 0] + entry[1, 1] + entry[2, 2]] if kind == "similarity" else []
    return torch.stack([*entry[:, 3], *turns, *growth])
