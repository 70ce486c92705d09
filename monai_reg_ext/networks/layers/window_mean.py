# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.search_grid import SearchGrid
from monai_reg_ext.networks.layers.window_cost import axis_weights, slabs_of_window, window_samples

__all__ = ["window_mean"]


def window_mean(probabilities: torch.Tensor, values: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    r"""What control points expect to see: the mean over their displacements, :math:`\sum_d P(d, k) \, v(k + d)`.

    The values are interpolated linearly, at the border repeated. They are never laid out for all displacements, neither
    here nor for the gradient.

    Args:
        probabilities: ``(B, *grid.window, *grid.size)``, or any other weights.
        values: ``(B, C, I, J, K)``, for example one-hot labels, in whose voxels the grid counts. They get no gradient.
        grid: control points and displacements.

    Returns:
        ``(B, C, *grid.size)``, float32, or float64 with float64 probabilities, with gradients to the probabilities.

    Raises:
        ValueError: when the shapes do not fit.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 2, non-local label loss.
    """
    if probabilities.shape != (len(values), *grid.window, *grid.size):
        raise ValueError(
            f"window_mean needs weights of shape {(len(values), *grid.window, *grid.size)}, one for every displacement "
            f"at every control point, got {tuple(probabilities.shape)}."
        )
    dtype = torch.promote_types(probabilities.dtype, torch.float32)
    return _WindowMean.apply(probabilities.to(dtype), values.detach().to(dtype), grid)


class _WindowMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probabilities: torch.Tensor, values: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        ctx.grid = grid
        ctx.save_for_backward(values)
        mean = values.new_zeros(*values.shape[:2], *grid.size)
        twin = compiled_twin("window", probabilities, values)
        if twin is not None:
            twin.add_mean(probabilities, values, axis_weights(values, grid), mean)
            return mean
        with torch.autocast(values.device.type, enabled=False):
            for label, rows in slabs_of_window(values, grid):
                samples = window_samples(values, grid, label, rows)
                mean[:, :, rows] += torch.einsum("bpqrjk,bcrpjqk->bcrjk", probabilities[:, label, :, :, rows], samples)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (values,) = ctx.saved_tensors
        twin = compiled_twin("window", values, gradient)
        if twin is not None:
            return twin.products(gradient, values, axis_weights(values, ctx.grid)), None, None
        weights = gradient.new_empty(len(values), *ctx.grid.window, *ctx.grid.size)
        with torch.autocast(values.device.type, enabled=False):
            for label, rows in slabs_of_window(values, ctx.grid):
                samples = window_samples(values, ctx.grid, label, rows)
                weights[:, label, :, :, rows] = torch.einsum("bcrjk,bcrpjqk->bpqrjk", gradient[:, :, rows], samples)
        return weights, None, None
