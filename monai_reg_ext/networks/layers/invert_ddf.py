# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.networks.layers.solve_backward import newton_step, solve_backward
from monai_reg_ext.networks.layers.warp import identity_grid

__all__ = ["invert_ddf"]


def invert_ddf(ddf: torch.Tensor, iterations: int = 30, tolerance: float = 1e-4) -> torch.Tensor:
    """Inverse of a displacement field: ``v`` with ``v(x) = -ddf(x + v(x))``.

    The equation is solved voxel by voxel, see :py:func:`solve_backward`; what is left of it is
    ``compose_ddf(ddf, inverse)``. Where the field folds the inverse is one of several, or as near as can be. Outside
    its grid the field goes on as at its border.

    Gradients reach the field through the equation (implicit differentiation), not through the steps of its solution.
    Where the field all but folds they are those of ``-ddf(x + v)`` with v held still.

    Args:
        ddf: ``(B, 3, I, J, K)`` in voxels.
        iterations: most steps of one voxel.
        tolerance: voxels; a voxel stops when its residual is smaller.

    Returns:
        ``(B, 3, I, J, K)`` in voxels of the same grid, in the dtype of ``ddf``.
    """
    targets = identity_grid(ddf.shape[2:], ddf)[0].flatten(1).T
    inverses = []
    for item in ddf:
        points, _ = solve_backward(item, targets, iterations, tolerance)
        if torch.is_grad_enabled() and item.requires_grad:
            points = _with_gradient(item, points, targets)
        inverses.append((points - targets).T.reshape(item.shape))
    return torch.stack(inverses).to(ddf.dtype)


def _with_gradient(ddf: torch.Tensor, points: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One more Newton step, whose derivative at a solution is the solution's: ``-J^-1 d(ddf)``."""
    missing = targets - points - _displacement(ddf, points)
    return points + newton_step(_columns(ddf.detach(), points), missing)


def _columns(ddf: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, ...]:
    points = points.detach().requires_grad_()
    moved = points + _displacement(ddf, points)
    rows = [torch.autograd.grad(moved[:, axis].sum(), points, retain_graph=axis < 2)[0] for axis in range(3)]
    return torch.stack(rows, dim=1).unbind(2)


def _displacement(ddf: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return sample_points(ddf[None].float(), points[None])[0]
