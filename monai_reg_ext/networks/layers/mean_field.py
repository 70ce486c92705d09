# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.min_convolution import min_convolution, quadratic_envelope

__all__ = ["mean_field", "pass_messages"]


def mean_field(
    cost: torch.Tensor,
    rounds: int = 2,
    data_weight: float | torch.Tensor = 1.0,
    message_weight: float | torch.Tensor = 1.0,
    bias: float | torch.Tensor = 0.0,
    envelope_weight: float | None = None,
    averages: int = 2,
    message_widths: Sequence[Sequence[int]] = ((3, 3),) * 3,
) -> torch.Tensor:
    """Costs on which neighbouring control points agree: mean field inference of a smooth displacement field.

    In every round each point forgives small changes of its displacement (:py:func:`min_convolution`) and takes the
    average of its neighbours (:py:func:`pass_messages`). The first round starts from the costs, later ones from ``bias
    + data_weight * cost + message_weight * result``. ``softmax(-result)`` over the displacements are probabilities.

    Args:
        cost: ``(B, l_0, l_1, l_2, i, j, k)``, see :py:func:`window_cost`.
        rounds: at least one.
        data_weight: of the costs in later rounds.
        message_weight: of the round before; may be negative.
        bias: changes the result by a constant and probabilities not at all.
        envelope_weight: take :py:func:`quadratic_envelope` of this weight in place of the min-convolution.
        averages: see :py:func:`min_convolution`.
        message_widths: see :py:func:`pass_messages`; empty ones leave every point by itself.

    Returns:
        The same shape, float32 or float64.

    Raises:
        ValueError: when there are no rounds.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 2.
    """
    if rounds < 1:
        raise ValueError(f"mean_field needs rounds >= 1, got {rounds}.")

    weights = data_weight, message_weight, bias
    # costs are large: no copies where no gradient needs them
    overwrite = not (torch.is_grad_enabled() and any(_learns(one) for one in (cost, *weights)))

    def one_round(belief: torch.Tensor, overwrite_belief: bool) -> torch.Tensor:
        if envelope_weight is None:
            belief = min_convolution(belief, averages, overwrite_belief)
        else:
            belief = quadratic_envelope(belief, envelope_weight)
        return pass_messages(belief, message_widths, overwrite)

    belief = one_round(cost, False)
    for _ in range(rounds - 1):
        belief = one_round((_overwritten if overwrite else _combined)(belief, cost, *weights), overwrite)
    return belief


def _learns(value: float | torch.Tensor) -> bool:
    return torch.is_tensor(value) and value.requires_grad


def _combined(
    belief: torch.Tensor,
    cost: torch.Tensor,
    data_weight: float | torch.Tensor,
    message_weight: float | torch.Tensor,
    bias: float | torch.Tensor,
) -> torch.Tensor:
    return bias + data_weight * cost + message_weight * belief


def _overwritten(
    belief: torch.Tensor,
    cost: torch.Tensor,
    data_weight: float | torch.Tensor,
    message_weight: float | torch.Tensor,
    bias: float | torch.Tensor,
) -> torch.Tensor:
    belief = belief.mul_(message_weight).addcmul_(cost, torch.as_tensor(data_weight).to(cost))
    return belief if isinstance(bias, float) and bias == 0 else belief.add_(bias)


def pass_messages(
    cost: torch.Tensor, widths: Sequence[Sequence[int]] = ((3, 3),) * 3, overwrite: bool = False
) -> torch.Tensor:
    """Average each displacement's cost over neighbouring control points.

    Moving averages, one after the other, over costs whose border repeats beyond the grid. Two of width 3 weigh five
    neighbours 1, 2, 3, 2, 1.

    Args:
        cost: ``(B, l_0, l_1, l_2, i, j, k)``, any number of points.
        widths: along each of the three axes odd extents in points.
        overwrite: the result may take the place of the costs. Not where gradients are needed.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: when a width is even or below 1.
    """
    for width in (width for axis in widths for width in axis):
        if width < 1 or width % 2 == 0:
            raise ValueError(f"widths must be odd and positive, got {widths}.")
    if all(width == 1 for axis in widths for width in axis):
        return cost
    widths = tuple(map(tuple, widths))
    twin = compiled_twin("banded_filter", cost.detach())
    if twin is not None and overwrite and cost.is_contiguous():
        twin.overwrite_by_filtered(cost.flatten(1, 3), _bands(cost, widths, transposed=False))
        return cost
    if twin is not None:
        return _Compiled.apply(cost, widths)
    matrices = [_matrix(size, of_axis) for size, of_axis in zip(cost.shape[4:], widths, strict=True)]
    # bfloat16 has too few digits to compare costs
    with torch.autocast(cost.device.type, enabled=False):
        for matrix in matrices:
            # the contracted axis comes back as the last one: after three turns all are in order
            cost = torch.tensordot(cost, matrix.to(cost), dims=([4], [1]))
    return cost


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: torch.Tensor, widths: tuple[tuple[int, ...], ...]) -> torch.Tensor:
        ctx.widths = widths
        return _filtered(cost, widths, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _filtered(gradient, ctx.widths, transposed=True), None


def _filtered(cost: torch.Tensor, widths: tuple[tuple[int, ...], ...], transposed: bool) -> torch.Tensor:
    from monai_reg_ext.networks.kernels.banded_filter import banded_filter

    return banded_filter(cost.flatten(1, 3), _bands(cost, widths, transposed)).view(cost.shape)


def _bands(cost: torch.Tensor, widths: tuple[tuple[int, ...], ...], transposed: bool) -> list[Any]:
    return [_band(size, of_axis, transposed) for size, of_axis in zip(cost.shape[4:], widths, strict=True)]


@lru_cache(maxsize=64)
def _band(size: int, widths: tuple[int, ...], transposed: bool) -> Any:
    from monai_reg_ext.networks.kernels.banded_filter import band

    matrix = _matrix(size, widths).float()
    return band(matrix.T if transposed else matrix)


@lru_cache(maxsize=64)
def _matrix(size: int, widths: tuple[int, ...]) -> torch.Tensor:
    """``(size, size)`` float64: what becomes of every unit vector along one axis."""
    reach = sum(width // 2 for width in widths)
    points = torch.eye(size, dtype=torch.float64)
    rows = points[torch.arange(-reach, size + reach).clamp(0, size - 1)]
    for width in widths:
        rows = rows.unfold(0, width, 1).mean(-1)
    return rows
