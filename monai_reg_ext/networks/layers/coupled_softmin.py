# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from monai_reg_ext.networks.layers.box_filter import box_filter, box_filter_adjoint
from monai_reg_ext.networks.layers.cost_volume import CostVolume
from monai_reg_ext.networks.layers.displacement_posterior import covariance_times, displacement_moments, soft_logits
from monai_reg_ext.networks.layers.fill_outside import FillOutside

__all__ = ["coupled_softmin"]


def coupled_softmin(
    cost_volume: CostVolume, couplings: Sequence[float], sharpness: float, compat: bool, fill: FillOutside
) -> torch.Tensor:
    """Coupled convex optimisation whose search takes the expected displacement, with gradients to the costs.

    See :py:func:`coupled_convex`, which this is with ``sharpness``. Per pass ten values are kept at each control point;
    the gradient recomputes the probabilities of all passes in one iteration over the volume. It can be taken once.
    """
    return _CoupledSoftmin.apply(cost_volume, (0.0, *couplings), sharpness, compat, fill, *cost_volume.inputs)


class _CoupledSoftmin(torch.autograd.Function):
    """``e = sum_l p_l d_l``, ``p = softmax(-a (S + c |d - u|^2))``, ``u = box(e)``, and so on with the next *c*.

    A gradient ``g`` of ``e`` reaches the costs as ``-a p_l g.(d_l - e)`` and the preceding ``u`` as ``2 a c Cov(d) g``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cost_volume: CostVolume,
        couplings: tuple[float, ...],
        sharpness: float,
        compat: bool,
        fill: FillOutside,
        *inputs: torch.Tensor,
    ) -> torch.Tensor:
        coarse_ddf = cost_volume.labels.new_zeros(cost_volume.batch, 3, *cost_volume.size)
        moments = []
        for coupling in couplings:
            moments.append(displacement_moments(cost_volume, coarse_ddf, coupling, sharpness))
            coarse_ddf = box_filter(fill(moments[-1][0]), compat=compat)
        ctx.cost_volume, ctx.couplings, ctx.sharpness = cost_volume, couplings, sharpness
        ctx.compat, ctx.fill = compat, fill
        # the inputs are saved so that autograd notices when they are changed in place
        ctx.save_for_backward(*inputs, *(tensor for triple in moments for tensor in triple))
        return coarse_ddf

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ddf_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        moments = ctx.saved_tensors[len(ctx.cost_volume.inputs) :]
        means, covariances, log_sums = moments[0::3], moments[1::3], moments[2::3]
        fields = [torch.zeros_like(means[0]), *(box_filter(ctx.fill(mean), compat=ctx.compat) for mean in means[:-1])]
        mean_gradients = _mean_gradients(ddf_gradient, covariances, ctx.couplings, ctx.sharpness, ctx.compat, ctx.fill)
        passes = list(zip(ctx.couplings, fields, log_sums, means, mean_gradients, strict=True))

        def chunk_gradient(start: int, cost: torch.Tensor) -> torch.Tensor:
            labels = ctx.cost_volume.labels[start : start + cost.shape[1]]
            gradient = torch.zeros_like(cost)
            for coupling, field, log_sum, mean, mean_gradient in passes:
                add_softmin_gradient(
                    cost, labels, field, coupling, ctx.sharpness, log_sum, mean, mean_gradient, gradient
                )
            return gradient

        with torch.autocast(ddf_gradient.device.type, enabled=False):
            return None, None, None, None, None, *ctx.cost_volume.pull_back(chunk_gradient)


def _mean_gradients(
    ddf_gradient: torch.Tensor,
    covariances: Sequence[torch.Tensor],
    couplings: Sequence[float],
    sharpness: float,
    compat: bool,
    fill: FillOutside,
) -> list[torch.Tensor]:
    """Gradient with respect to the expected displacement of every pass."""
    gradients: list[torch.Tensor] = []
    for coupling, covariance in zip(reversed(couplings), reversed(covariances), strict=True):
        gradients.append(fill.adjoint(box_filter_adjoint(ddf_gradient.contiguous(), compat=compat)))
        ddf_gradient = 2 * sharpness * coupling * covariance_times(covariance, gradients[-1])
    return gradients[::-1]


def add_softmin_gradient(
    cost: torch.Tensor,
    labels: torch.Tensor,
    coarse_ddf: torch.Tensor,
    coupling: float,
    sharpness: float,
    log_sum: torch.Tensor,
    mean: torch.Tensor,
    mean_gradient: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    """Add what one pass contributes to the gradient of some costs.

    Args:
        cost: ``(B, l, i, j, k)``.
        labels: ``(l, 3)`` in cells.
        coarse_ddf: ``(B, 3, i, j, k)`` contiguous, in cells; the field to which the pass was coupled.
        coupling: weight of the squared distance between label and field.
        sharpness: weight of the whole energy.
        log_sum: ``(B, 1, i, j, k)`` of :py:func:`displacement_moments`.
        mean: ``(B, 3, i, j, k)`` expected displacement of the pass.
        mean_gradient: ``(B, 3, i, j, k)`` contiguous, gradient with respect to ``mean``.
        gradient: ``(B, l, i, j, k)`` contiguous, added to.
    """
    probabilities = soft_logits(cost, labels, coarse_ddf, coupling, sharpness).sub_(log_sum.flatten(2)).exp_()
    shared = (mean * mean_gradient).sum(1, keepdim=True).flatten(2)
    slope = torch.baddbmm(shared, labels.expand(len(cost), -1, -1), mean_gradient.flatten(2), beta=-1)
    gradient.flatten(2).addcmul_(probabilities, slope, value=-sharpness)
