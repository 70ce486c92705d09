# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

__all__ = ["ConjugateGradients", "conjugate_gradients"]

# when rounding has led the running residual astray, begin again from the true one
_STARTS = 3
# a GPU must not wait for its host at every step
_STEPS_UNSEEN_BY_HOST = 8

Linear = Callable[[torch.Tensor], torch.Tensor]


class ConjugateGradients(NamedTuple):
    """Solutions of some systems and how far they got.

    - ``values``: as the right-hand side.
    - ``iterations``: ``(B,)`` int64, of each system.
    - ``residual``: ``(B,)``, length of ``b - A x`` over that of ``b``; 0 where both are.
    - ``converged``: ``(B,)`` bool, whether the residual is below the tolerance.
    """

    values: torch.Tensor
    iterations: torch.Tensor
    residual: torch.Tensor
    converged: torch.Tensor


def conjugate_gradients(
    multiply: Linear, precondition: Linear, right_side: torch.Tensor, tolerance: float, max_iterations: int
) -> ConjugateGradients:
    """Preconditioned conjugate gradients for a batch of symmetric positive definite systems, all started at 0.

    Each system takes its own steps and rests when it has arrived: what stands beside it in the batch changes nothing.
    One that turns out not to be positive definite rests too, where it is; one of values that are not finite gives NaN.

    Args:
        multiply: product of the matrices with vectors.
        precondition: product of symmetric positive definite approximate inverses with vectors.
        right_side: ``(B, ...)``, float32 or float64.
        tolerance: least relative residual.
        max_iterations: most steps.

    Source: Hestenes & Stiefel 1952, with a preconditioner as in Saad, "Iterative methods for sparse linear systems",
    algorithm 9.1. Stops as ``scipy.sparse.linalg.cg(rtol=tolerance)`` does.
    """
    goal = tolerance * _length(right_side)
    values, residual = torch.zeros_like(right_side), right_side
    iterations = torch.zeros(len(right_side), dtype=torch.int64, device=right_side.device)
    for _ in range(_STARTS):
        _descend(multiply, precondition, values, residual.clone(), goal, iterations, max_iterations)
        residual = right_side - multiply(values)
        if not ((_length(residual) > goal) & (iterations < max_iterations)).any():
            break
    relative = torch.where(goal == 0, 0.0, _length(residual) / _length(right_side))
    values = torch.where(_per_value(relative.isfinite(), values), values, torch.nan)
    return ConjugateGradients(values, iterations, relative, relative <= tolerance)


def _descend(
    multiply: Linear,
    precondition: Linear,
    values: torch.Tensor,
    residual: torch.Tensor,
    goal: torch.Tensor,
    iterations: torch.Tensor,
    max_iterations: int,
) -> None:
    """Change values and iterations until the running residual of every system is below its goal."""
    unseen = _STEPS_UNSEEN_BY_HOST if values.is_cuda else 1
    preconditioned = precondition(residual)
    # the preconditioner may have given the residual itself
    direction = preconditioned.clone()
    decrease = _dot(residual, preconditioned)
    moving = (_length(residual) > goal) & (iterations < max_iterations)
    for step in range(max_iterations):
        if step % unseen == 0 and not moving.any():
            break
        image = multiply(direction)
        curvature = _dot(direction, image)
        moving &= curvature > 0
        iterations += moving
        length = _per_value(torch.where(moving, decrease / curvature, 0.0), values)
        values.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        moving &= (_length(residual) > goal) & (iterations < max_iterations)
        preconditioned = precondition(residual)
        before, decrease = decrease, _dot(residual, preconditioned)
        kept = torch.where(moving, decrease / before, 0.0)
        direction = torch.addcmul(preconditioned, _per_value(kept, values), direction)


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(one.flatten(1), other.flatten(1))


def _length(vectors: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(vectors.flatten(1), dim=1)


def _per_value(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
