# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from monai_reg_ext.networks.layers.conjugate_gradients import ConjugateGradients, conjugate_gradients
from monai_reg_ext.networks.layers.graph_laplacian import graph_laplacian
from monai_reg_ext.networks.layers.normal_operator import NormalOperator
from monai_reg_ext.networks.layers.normal_preconditioner import PRECONDITIONERS
from monai_reg_ext.networks.layers.symmetric_matrix import entries_of, matrices_of, symmetric_shape

__all__ = ["solve_normal_equations"]

# a direction counts as without any gradient if its eigenvalue of the mean block is less than that of the largest one,
# slopes along it less than some 3 % of others
_UNSEEN = 1e-3
# of the largest eigenvalue: what interpolation makes of slopes along such a direction shall not move anything far
_HOLD = 1e-2


def solve_normal_equations(
    matrix: torch.Tensor,
    right_side: torch.Tensor,
    regularization: float | torch.Tensor,
    weights: Sequence[float] | None = None,
    damping: float = 0.0,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
    preconditioner: str = "multigrid",
) -> ConjugateGradients:
    r"""Solve :math:`(\text{blockdiag}(M_i) + \lambda L)\, x = b`, a Gauss-Newton step with diffusion, on a grid.

    *L* is the :py:func:`graph_laplacian`. Nothing is assembled: conjugate gradients need products alone, and every
    system of the batch takes as many as it needs. Gradients reach ``matrix``, ``right_side`` and ``regularization``
    through the equations (implicit differentiation): one more solution, with the incoming gradient on the right, to the
    same tolerance. They cost no memory for the iterations, however many there are.

    Where all blocks together say next to nothing of a direction, a constant field along it solves the equations as well
    as none: such systems are damped along it, by a hundredth of the largest eigenvalue of the mean block, with a
    warning. A system that is not solved within ``max_iterations`` is told of in a warning too, also in the backward
    pass.

    Args:
        matrix: ``(B, E, *size)`` on two or three axes, symmetric positive semidefinite blocks *M*: the
            ``n (n + 1) / 2`` entries of the upper triangle row by row, or ``n`` entries, of the diagonal alone.
        right_side: ``(B, n, *size)``; half precision is computed in float32.
        regularization: weight :math:`\lambda > 0`, a number or a tensor, one for all or one for each system.
        weights: of the Laplacian's axes, 1 by default, see :py:func:`graph_laplacian`.
        damping: Levenberg's :math:`\mu \ge 0`: so many times the mean diagonal entry of the blocks is added to every
            diagonal entry. Shorter steps, also where nothing has a gradient.
        tolerance: least length of ``b - A x`` relative to that of ``b``; with float32 not below some 1e-6.
        max_iterations: most iterations.
        preconditioner: ``"multigrid"``, the fastest or near it at every weight that was measured; ``"cosine"`` for
            equations that are all regularisation, ``"block"`` for those that are hardly regularised.

    Returns:
        Values ``(B, n, *size)``, iterations, relative residual and whether it converged, each ``(B,)``.

    Raises:
        ValueError: when sizes do not fit, values are not finite, ``regularization`` is not above 0, ``damping`` is
            negative, or the preconditioner is unknown.

    Source: Heinrich, "Learning registration models with differentiable Gauss-Newton optimisation", MIDL 2022, with the
    blocks coupled and preconditioned.
    """
    settings = _Settings(weights, tolerance, max_iterations, _known(preconditioner))
    dtype = torch.promote_types(torch.promote_types(matrix.dtype, right_side.dtype), torch.float32)
    with torch.autocast(right_side.device.type, enabled=False):
        matrix, right_side = matrix.to(dtype), right_side.to(dtype)
        regularization = torch.as_tensor(regularization, dtype=dtype, device=right_side.device)
        regularization = regularization.expand(len(right_side))
        _check_sizes(matrix, right_side)
        matrix = _damped(matrix, right_side, regularization, damping)
        return ConjugateGradients(*_Solve.apply(matrix, right_side, regularization, settings))


class _Settings(NamedTuple):
    weights: Sequence[float] | None
    tolerance: float
    max_iterations: int
    preconditioner: str


class _Solve(torch.autograd.Function):
    """``x = A^-1 b``. With ``A y = dx``: ``db = y``, ``dM = -y x^T`` made symmetric, ``d lambda = -y^T L x``."""

    @staticmethod
    def forward(
        ctx: Any, matrix: torch.Tensor, right_side: torch.Tensor, regularization: torch.Tensor, settings: _Settings
    ) -> tuple[torch.Tensor, ...]:
        solution = _solve(matrix, right_side, regularization, settings, "registration")
        ctx.settings = settings
        ctx.save_for_backward(matrix, regularization, solution.values)
        ctx.mark_non_differentiable(*solution[1:])
        return tuple(solution)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        matrix, regularization, values = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            right_side_gradient = _solve(matrix, gradient, regularization, ctx.settings, "gradient").values
            matrix_gradient = regularization_gradient = None
            if ctx.needs_input_grad[0]:
                matrix_gradient = _outer_product(right_side_gradient, values, matrix.shape[1]).neg_()
            if ctx.needs_input_grad[2]:
                rough = right_side_gradient * graph_laplacian(values, ctx.settings.weights)
                regularization_gradient = -rough.flatten(1).sum(1)
        return matrix_gradient, right_side_gradient, regularization_gradient, None


def _solve(
    matrix: torch.Tensor, right_side: torch.Tensor, regularization: torch.Tensor, settings: _Settings, what: str
) -> ConjugateGradients:
    operator = NormalOperator(matrix, right_side.shape[1], regularization, settings.weights)
    precondition = PRECONDITIONERS[settings.preconditioner](operator)
    limits = settings.tolerance, settings.max_iterations
    solution = conjugate_gradients(operator, precondition, right_side.contiguous(), *limits)
    if not solution.converged.all():
        failed = (~solution.converged).sum().item()
        warnings.warn(
            f"{failed} of {len(right_side)} systems of normal equations ({what}) are not solved: relative residual "
            f"{solution.residual.max():.1e} after {solution.iterations.max()} iterations, tolerance "
            f"{settings.tolerance:.1e}. Raise max_iterations, the regularization, the damping or the tolerance.",
            stacklevel=2,
        )
    return solution


def _outer_product(one: torch.Tensor, other: torch.Tensor, entries: int) -> torch.Tensor:
    """Entries of ``one other^T``; those beside the diagonal stand for two places of the matrix."""
    if entries == one.shape[1]:
        return one * other
    rows, columns = map(list, symmetric_shape(entries))
    product = one[:, rows] * other[:, columns]
    beside = [entry for entry in range(entries) if rows[entry] != columns[entry]]
    product[:, beside] += one[:, columns][:, beside] * other[:, rows][:, beside]
    return product


def _damped(
    matrix: torch.Tensor, right_side: torch.Tensor, regularization: torch.Tensor, damping: float
) -> torch.Tensor:
    """The blocks with what is added where that was asked for or is needed."""
    operator = NormalOperator(matrix, right_side.shape[1])
    mean = matrix.flatten(2).mean(2)
    # one look at all that must be known on the host
    known = [mean, right_side.abs().flatten(1).mean(1, keepdim=True), regularization[:, None]]
    known = torch.cat(known, 1).detach().cpu().double()
    _check_values(known, damping)
    added = _hold_unseen(known[:, :-2], known[:, -1:], operator.coupled)
    if damping == 0 and added is None:
        return matrix
    amount = torch.zeros_like(mean) if added is None else added.to(mean)
    amount[:, operator.diagonal] += damping * mean[:, operator.diagonal].mean(1, keepdim=True)
    return matrix + amount.view(*mean.shape, *[1] * operator.axes)


def _hold_unseen(mean: torch.Tensor, regularization: torch.Tensor, coupled: bool) -> torch.Tensor | None:
    """What keeps systems ``(B, E)`` from moving as a whole along directions of which their blocks say nothing."""
    eigenvalues, directions = torch.linalg.eigh(matrices_of(mean) if coupled else mean.diag_embed())
    unseen = eigenvalues <= _UNSEEN * eigenvalues[:, -1:]
    if not unseen.any():
        return None
    warnings.warn(
        f"{unseen.any(1).sum()} of {len(mean)} systems of normal equations have a direction without any gradient, "
        "along which a constant field changes nothing; they are damped along it. Do features vary along every axis?",
        stacklevel=4,
    )
    strength = _HOLD * torch.maximum(eigenvalues[:, -1:], _HOLD * regularization)
    hold = (directions * (strength * unseen).unsqueeze(1)) @ directions.mT
    return entries_of(hold) if coupled else hold.diagonal(dim1=1, dim2=2)


def _known(preconditioner: str) -> str:
    if preconditioner not in PRECONDITIONERS:
        raise ValueError(f"preconditioner must be one of {list(PRECONDITIONERS)}, got {preconditioner!r}.")
    return preconditioner


def _check_sizes(matrix: torch.Tensor, right_side: torch.Tensor) -> None:
    components = right_side.shape[1]
    entries = components, components * (components + 1) // 2
    fits = matrix.shape[0] == right_side.shape[0] and matrix.shape[2:] == right_side.shape[2:]
    if right_side.dim() not in (4, 5) or not fits or matrix.shape[1] not in entries:
        raise ValueError(
            "normal equations need a right side (B, n, *size) on two or three axes and a matrix of n or n (n + 1) / 2 "
            f"entries on the same grid, got {tuple(right_side.shape)} and {tuple(matrix.shape)}."
        )


def _check_values(known: torch.Tensor, damping: float) -> None:
    if not known.isfinite().all():
        raise ValueError("normal equations need finite values, got NaN or infinity. Are the features finite?")
    if not (known[:, -1] > 0).all():
        raise ValueError(
            f"regularization must be > 0, so that cells without gradient follow others, got {known[:, -1].tolist()}."
        )
    if not damping >= 0:
        raise ValueError(f"damping must be >= 0, got {damping}.")
