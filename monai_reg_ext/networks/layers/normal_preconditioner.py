# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from monai_reg_ext.networks.layers.cosine_transform import cosine_transform
from monai_reg_ext.networks.layers.graph_laplacian import laplacian_eigenvalues
from monai_reg_ext.networks.layers.normal_operator import NormalOperator
from monai_reg_ext.networks.layers.symmetric_matrix import symmetric_inverse

__all__ = ["PRECONDITIONERS", "block_preconditioner", "cosine_preconditioner", "multigrid_preconditioner"]

Solver = Callable[[torch.Tensor], torch.Tensor]

# of a step that solves every cell by itself: below 1 so that it smooths
_RELAXATION = 0.8


def block_preconditioner(operator: NormalOperator) -> Solver:
    r"""Solves every cell's equations by itself, neighbours held at 0: block-Jacobi, :math:`M_i + \lambda \deg_i`.

    Exact without regularisation, and the better, the less it weighs.
    """
    blocks = operator.matrix.clone()
    blocks[:, operator.diagonal] += operator.per_cell(operator.regularization) * _degrees(operator)
    inverse = symmetric_inverse(blocks) if operator.coupled else blocks.reciprocal()
    return NormalOperator(inverse, operator.components)


def cosine_preconditioner(operator: NormalOperator) -> Solver:
    r"""Solves :math:`\lambda L + \text{diag}(\bar m)`, the mean of each diagonal entry in the place of all blocks.

    Exact where all blocks are one diagonal matrix, and the better, the more the regularisation weighs.
    """
    mean = operator.matrix[:, operator.diagonal].flatten(2).mean(2).view(-1, operator.components, *[1] * operator.axes)
    waves = laplacian_eigenvalues(operator.matrix.shape[2:], operator.matrix, operator.weights)
    inverse = (operator.per_cell(operator.regularization) * waves + mean).reciprocal()
    return lambda field: cosine_transform(cosine_transform(field) * inverse, inverse=True)


def multigrid_preconditioner(operator: NormalOperator) -> Solver:
    """One V-cycle of multigrid, which serves every weight of the regularisation: what is smooth is solved on grids of
    cells twice as long, down to a single one, what is left cell by cell, once before and once after.

    A cell's value holds for all cells that it was made of. That alone would make coarse Laplacians twice too stiff, so
    that they are halved. With equal steps before and after, the cycle is symmetric and positive definite.

    Source: Braess, "Towards algebraic multigrid for elliptic problems of second order", Computing 55, 1995.
    """
    relax = block_preconditioner(operator)
    if max(operator.matrix.shape[2:]) == 1:
        return relax
    solve_coarse = multigrid_preconditioner(_coarse(operator))

    def cycle(right_side: torch.Tensor) -> torch.Tensor:
        field = relax(right_side).mul_(_RELAXATION)
        field += _spread(solve_coarse(_gather(right_side - operator(field))), field.shape[2:])
        return field.add_(relax(right_side - operator(field)), alpha=_RELAXATION)

    return cycle


PRECONDITIONERS: dict[str, Callable[[NormalOperator], Solver]] = {
    "multigrid": multigrid_preconditioner,
    "cosine": cosine_preconditioner,
    "block": block_preconditioner,
}


def _degrees(operator: NormalOperator) -> torch.Tensor:
    """Weights of each cell's neighbours, added up: the Laplacian's diagonal, ``(*size)``."""
    degrees = operator.matrix.new_zeros(())
    for extent, weight in zip(operator.matrix.shape[2:], operator.weights, strict=True):
        along_axis = operator.matrix.new_full((extent,), 2 * weight)
        along_axis[0] -= weight
        along_axis[-1] -= weight
        degrees = degrees.unsqueeze(-1) + along_axis
    return degrees


def _coarse(operator: NormalOperator) -> NormalOperator:
    """The equations added up over cells twice as long."""
    joined = 2 ** sum(extent > 1 for extent in operator.matrix.shape[2:])
    # half as many cells face a coarse neighbour as a coarse cell has, and half of their weight is enough
    weights = [weight * joined / 4 for weight in operator.weights]
    return NormalOperator(_gather(operator.matrix), operator.components, operator.regularization, weights)


def _gather(field: torch.Tensor) -> torch.Tensor:
    """Sums over cells twice as long, of which the last may be half."""
    pool = F.avg_pool3d if field.dim() == 5 else F.avg_pool2d
    steps = [min(2, extent) for extent in field.shape[2:]]
    return pool(field, steps, ceil_mode=True, divisor_override=1)


def _spread(field: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The value of a cell to all cells that it was made of: the transpose of :py:func:`_gather`."""
    steps = [float(min(2, extent)) for extent in size]
    if field.dim() == 5:
        return torch.ops.aten.upsample_nearest3d(field, list(size), *steps)
    return torch.ops.aten.upsample_nearest2d(field, list(size), *steps)
