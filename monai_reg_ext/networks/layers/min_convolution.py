# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from monai_reg_ext.networks.kernels.runtime import compiled_twin

__all__ = ["min_convolution", "quadratic_envelope"]

_DISPLACEMENT_DIMS = (1, 2, 3)
# bytes of costs at once; a gradient keeps some times as much
_CPU_BLOCK, _GPU_BLOCK = 16 << 20, 256 << 20


def min_convolution(cost: torch.Tensor, averages: int = 2, overwrite: bool = False) -> torch.Tensor:
    r"""What the neighbours of a displacement would cost, a displacement's distance counted: a smoothed lower envelope.

    The least cost of each 3x3x3 neighbourhood of displacements, averaged over 3x3x3 neighbourhoods ``averages`` times,
    comes close to the lower envelope of parabolas :math:`\min_e c(e) + w |d - e|^2` and has useful gradients. Beyond
    the window its border repeats. Along an axis with a single displacement nothing happens.

    Args:
        cost: ``(B, l_0, l_1, l_2, i, j, k)``, costs of displacements at control points; half precision is counted in
            float32.
        averages: two as in the paper; its form for planes of displacements has one.
        overwrite: the result may take the place of the costs. Not where gradients are needed.

    Returns:
        The same shape, float32 or float64. Memory: the output; its gradient needs the input.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 2.
    """
    _check(cost)
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    twin = compiled_twin("min_convolution", cost.detach()) if averages == 2 else None
    if twin is not None:
        return twin.min_convolution(cost, overwrite) if overwrite else _Compiled.apply(cost)
    return _by_points(lambda block: _averaged_minima(block, averages), cost)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cost)
        return compiled_twin("min_convolution", cost).min_convolution(cost)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (cost,) = ctx.saved_tensors
        twin = compiled_twin("min_convolution", cost, gradient)
        if twin is not None:
            return twin.min_convolution_gradient(cost, gradient)
        with torch.enable_grad():
            cost = cost.detach().requires_grad_()
            return torch.autograd.grad(_by_points(lambda block: _averaged_minima(block, 2), cost), cost, gradient)[0]


def _averaged_minima(cost: torch.Tensor, averages: int) -> torch.Tensor:
    """Padded first, then without padding, so that minima beyond the window see what lies there."""
    for dim in _DISPLACEMENT_DIMS:
        cost = _of_three(_padded(cost, dim, 1 + averages), dim, torch.minimum)
    for dim in _DISPLACEMENT_DIMS:
        for _ in range(averages):
            cost = _of_three(cost, dim, torch.add) / 3
    return cost


def _padded(cost: torch.Tensor, dim: int, width: int) -> torch.Tensor:
    first, last = cost.narrow(dim, 0, 1), cost.narrow(dim, cost.shape[dim] - 1, 1)
    return torch.cat([first] * width + [cost] + [last] * width, dim)


def _of_three(cost: torch.Tensor, dim: int, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    length = cost.shape[dim] - 2
    return join(join(cost.narrow(dim, 0, length), cost.narrow(dim, 1, length)), cost.narrow(dim, 2, length))


def quadratic_envelope(cost: torch.Tensor, weight: float) -> torch.Tensor:
    r"""The exact lower envelope of parabolas over the displacements, :math:`\min_e c(e) + w \, |d - e|^2`.

    Separable: three passes over one axis each.

    Args:
        cost: ``(B, l_0, l_1, l_2, i, j, k)``; half precision is counted in float32.
        weight: penalty *w* per squared step from one displacement to the next, ``> 0``.

    Returns:
        The same shape, float32 or float64. The gradient goes to the displacement that is the least.

    Raises:
        ValueError: when the weight is not positive.

    Source: Felzenszwalb & Huttenlocher, "Distance Transforms of Sampled Functions", 2012, section 2.
    """
    _check(cost)
    if not weight > 0:
        raise ValueError(f"weight must be > 0 so that far displacements cost more, got weight={weight}.")
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    return _by_points(lambda block: _envelope(block, weight), cost)


def _envelope(cost: torch.Tensor, weight: float) -> torch.Tensor:
    for dim in _DISPLACEMENT_DIMS:
        label = torch.arange(cost.shape[dim], device=cost.device, dtype=cost.dtype)
        penalty = weight * (label[:, None] - label).square()  # (to, from)
        moved = cost.movedim(dim, -1)
        cost = torch.stack([(moved + of_one).amin(-1) for of_one in penalty], dim)
    return cost


def _by_points(function: Callable[[torch.Tensor], torch.Tensor], cost: torch.Tensor) -> torch.Tensor:
    """A function of single control points, of a few of them after the other; computed anew for the gradient."""
    points = cost.flatten(4)
    bytes_per_point = cost[0, ..., 0, 0, 0].numel() * len(cost) * cost.element_size()
    step = max(1, (_GPU_BLOCK if cost.is_cuda else _CPU_BLOCK) // bytes_per_point)
    blocks = points.split(step, -1)
    if torch.is_grad_enabled() and cost.requires_grad:
        done = [checkpoint(function, block, use_reentrant=False) for block in blocks]
        return torch.cat(done, -1).view_as(cost)
    out = torch.empty_like(points)
    for block, target in zip(blocks, out.split(step, -1), strict=True):
        target.copy_(function(block))
    return out.view_as(cost)


def _check(cost: torch.Tensor) -> None:
    if cost.dim() != 7:
        raise ValueError(
            "A min-convolution needs costs (B, l_0, l_1, l_2, i, j, k) of displacements along three axes at control "
            f"points, got shape {tuple(cost.shape)}."
        )
