# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.sample_axes import linear_weights, sample_axes
from monai_reg_ext.networks.layers.search_grid import SearchGrid

__all__ = ["axis_weights", "slabs_of_window", "window_cost", "window_samples"]

# Bytes of samples at once: on the CPU so few that they stay near the cache, on a GPU so many that it has work.
_CPU_SLAB, _GPU_SLAB = 16 << 20, 256 << 20


def window_cost(fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    r"""Cost of every displacement at every control point: squared differences, summed over the features.

    :math:`\text{cost}(d, k) = \sum_c (F_c(k) - M_c(k + d))^2`, the moving features interpolated linearly, at the border
    repeated. With ``DenseCostVolume(cost.flatten(1, 3), grid.displacements)`` every search of this package runs on it.

    Args:
        fixed: ``(B, C, *grid.size)`` features at the control points, see :py:func:`sample_axes`.
        moving: ``(B, C, i, j, k)`` features, in whose cells the grid counts.
        grid: control points and displacements.

    Returns:
        ``(B, *grid.window, *grid.size)``, float32, or float64 with float64 features. Memory: little more than that,
        for the gradient as well.

    Raises:
        ValueError: when the shapes do not fit.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 2, correlation layer.
    """
    if fixed.shape[:2] != moving.shape[:2] or tuple(fixed.shape[2:]) != grid.size:
        raise ValueError(
            f"window_cost needs fixed features at the {grid.size} control points and as many channels of the moving "
            f"ones, got shapes {tuple(fixed.shape)} and {tuple(moving.shape)}. Sample the fixed ones by sample_axes."
        )
    dtype = torch.promote_types(fixed.dtype, torch.float32)
    return _WindowCost.apply(fixed.to(dtype), moving.to(dtype), grid)


class _WindowCost(torch.autograd.Function):
    """Samples are made slab by slab and forgotten; the gradient makes them again."""

    @staticmethod
    def forward(ctx: Any, fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        ctx.grid = grid
        ctx.save_for_backward(fixed, moving)
        twin = compiled_twin("window", fixed, moving)
        if twin is not None:
            return twin.cost(fixed, moving, axis_weights(moving, grid))
        cost = fixed.new_empty(len(fixed), *grid.window, *grid.size)
        for label, rows in slabs_of_window(moving, grid):
            cost[:, label, :, :, rows] = _slab(fixed[:, :, rows], moving, grid, label, rows)
        return cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        fixed, moving = ctx.saved_tensors
        twin = compiled_twin("window", fixed, moving, gradient)
        if twin is not None:
            return *twin.cost_gradient(fixed, moving, axis_weights(moving, ctx.grid), gradient), None
        total = torch.zeros_like(fixed), torch.zeros_like(moving)
        for label, rows in slabs_of_window(moving, ctx.grid):
            with torch.enable_grad():
                sides = fixed[:, :, rows].detach().requires_grad_(), moving.detach().requires_grad_()
                cost = _slab(*sides, ctx.grid, label, rows)
            of_slab = torch.autograd.grad(cost, sides, gradient[:, label, :, :, rows])
            total[0][:, :, rows] += of_slab[0]
            total[1].add_(of_slab[1])
        return *total, None


def _slab(fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid, label: int, rows: slice) -> torch.Tensor:
    """``(B, l_1, l_2, rows, n_1, n_2)`` costs of one displacement along axis 0."""
    difference = fixed[:, :, :, None, :, None] - window_samples(moving, grid, label, rows)
    return difference.square().sum(1).permute(0, 2, 4, 1, 3, 5)


def slabs_of_window(moving: torch.Tensor, grid: SearchGrid) -> Iterator[tuple[int, slice]]:
    """Parts of a window whose samples are a small part of the memory: a displacement and points along axis 0."""
    (_, n_1, n_2), (l_0, l_1, l_2) = grid.size, grid.window
    row = moving.shape[0] * moving.shape[1] * l_1 * n_1 * l_2 * n_2 * moving.element_size()
    step = max(1, (_GPU_SLAB if moving.is_cuda else _CPU_SLAB) // row)
    for label in range(l_0):
        for start in range(0, grid.size[0], step):
            yield label, slice(start, min(start + step, grid.size[0]))


def window_samples(moving: torch.Tensor, grid: SearchGrid, label: int, rows: slice) -> torch.Tensor:
    """``(B, C, rows, l_1, n_1, l_2, n_2)`` values where control points look with one displacement along axis 0."""
    positions = [grid.targets(0)[label, rows], grid.targets(1).flatten(), grid.targets(2).flatten()]
    samples = sample_axes(moving, positions)
    return samples.unflatten(4, (grid.window[2], -1)).unflatten(3, (grid.window[1], -1))


def axis_weights(moving: torch.Tensor, grid: SearchGrid) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each axis between which cells points look, and how far above the lower one, ``(l, n)`` each."""
    return [linear_weights(grid.targets(axis).to(moving), moving.shape[2 + axis]) for axis in range(3)]
