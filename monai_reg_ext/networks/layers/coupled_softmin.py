# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.box_filter import box_filter, box_filter_adjoint
from monai_reg_ext.networks.layers.cost_volume import CostVolume
from monai_reg_ext.networks.layers.displacement_posterior import displacement_moments, soft_logits
from monai_reg_ext.networks.layers.fill_outside import FillOutside
from monai_reg_ext.networks.layers.scratch import Scratch
from monai_reg_ext.networks.layers.symmetric_matrix import symmetric_product

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
        shared = [(mean * gradient).sum(1, keepdim=True) for mean, gradient in zip(means, mean_gradients, strict=True)]
        passes = torch.stack(
            [torch.cat(one, 1) for one in zip(fields, mean_gradients, log_sums, shared, strict=True)], 1
        )
        scratch = Scratch(passes)

        def chunk_gradient(start: int, cost: torch.Tensor) -> torch.Tensor:
            labels = ctx.cost_volume.labels[start : start + cost.shape[1]]
            gradient = scratch(cost.shape)
            write_softmin_gradient(cost, labels, ctx.couplings, ctx.sharpness, passes, gradient)
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
        ddf_gradient = 2 * sharpness * coupling * symmetric_product(covariance, gradients[-1])
    return gradients[::-1]


def write_softmin_gradient(
    cost: torch.Tensor,
    labels: torch.Tensor,
    couplings: Sequence[float],
    sharpness: float,
    passes: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    """What all passes contribute to the gradient of some costs.

    Args:
        cost: ``(B, l, i, j, k)``.
        labels: ``(l, 3)`` in cells.
        couplings: weight of the squared distance between label and field in each pass.
        sharpness: weight of the whole energy.
        passes: ``(B, len(couplings), 8, i, j, k)`` contiguous: the field to which the pass was coupled, the gradient
            *g* with respect to its expected displacement *e*, the logarithm of its sum, ``g.e``.
        gradient: ``(B, l, i, j, k)`` contiguous, overwritten.
    """
    twin = compiled_twin("coupled_softmin", cost, passes)
    if twin is not None:
        return twin.write_softmin_gradient(cost, labels, couplings, sharpness, passes, gradient)
    flat_gradient = gradient.zero_().flatten(2)
    for coupling, one in zip(couplings, passes.unbind(1), strict=True):
        field, mean_gradient, log_sum, shared = one.split([3, 3, 1, 1], 1)
        probabilities = soft_logits(cost, labels, field, coupling, sharpness).sub_(log_sum.flatten(2)).exp_()
        along = torch.baddbmm(shared.flatten(2), labels.expand(len(cost), -1, -1), mean_gradient.flatten(2), beta=-1)
        flat_gradient.addcmul_(probabilities, along, value=-sharpness)
