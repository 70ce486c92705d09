# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import NamedTuple

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.cost_volume import CostVolume
from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS, matrices_of

__all__ = ["DisplacementPosterior", "displacement_posterior"]


class DisplacementPosterior(NamedTuple):
    """What is known of the displacement at every control point.

    - ``mean``: ``(B, 3, i, j, k)`` expected displacement in cells, not smoothed.
    - ``covariance``: ``(B, 3, 3, i, j, k)`` in cells squared.
    - ``log_sum_exp``: ``(B, i, j, k)`` logarithm of the normalising sum; divided by minus the sharpness it is the soft
      minimum of cost and coupling.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    log_sum_exp: torch.Tensor


@torch.no_grad()
def displacement_posterior(
    cost_volume: CostVolume, coarse_ddf: torch.Tensor, coupling: float, sharpness: float
) -> DisplacementPosterior:
    """Probabilities ``softmax_l(-sharpness * (cost[l] + coupling * |d_l - u|^2))`` in their first moments.

    One pass over the volume, without gradients. It tells how sure a search was, whichever way the field *u* was found;
    the last pass of a soft :py:func:`coupled_convex` has ``u = coupled_convex(volume, couplings[:-1], sharpness)`` and
    ``coupling = couplings[-1]``.

    Args:
        cost_volume: costs of all displacements.
        coarse_ddf: ``(B, 3, i, j, k)`` in cells, the field *u* that the neighbourhood agrees on.
        coupling: weight that ties displacements to the field; 0 looks at the costs alone.
        sharpness: weight of the whole energy; large values leave the least.

    Returns:
        The moments; covariances are exact to about 1e-6 of the squared half width in float32.
    """
    coarse_ddf = coarse_ddf.to(cost_volume.labels)
    mean, covariance, log_sum = displacement_moments(cost_volume, coarse_ddf, coupling, sharpness)
    log_sum = log_sum[:, 0] - sharpness * coupling * coarse_ddf.square().sum(1)
    return DisplacementPosterior(mean, matrices_of(covariance), log_sum)


def displacement_moments(
    cost_volume: CostVolume, coarse_ddf: torch.Tensor, coupling: float, sharpness: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The moments of :py:func:`displacement_posterior` as the gradient needs them.

    Mean ``(B, 3, i, j, k)``, covariance ``(B, 6, i, j, k)`` with the entries 00, 01, 02, 11, 12, 22, and logarithm
    ``(B, 1, i, j, k)`` of the sum of ``exp`` of :py:func:`soft_logits`.
    """
    peak = coarse_ddf.new_full((cost_volume.batch, 1, *cost_volume.size), torch.finfo(coarse_ddf.dtype).min)
    moments = coarse_ddf.new_zeros(cost_volume.batch, 10, *cost_volume.size)
    # bfloat16 has too few digits to compare costs
    with torch.autocast(coarse_ddf.device.type, enabled=False):
        for start, cost in cost_volume:
            labels = cost_volume.labels[start : start + cost.shape[1]]
            update_moments(cost, labels, coarse_ddf, coupling, sharpness, peak, moments)
    total, first, second = moments.split([1, 3, 6], 1)
    mean = first / total
    covariance = second / total - mean[:, ROWS] * mean[:, COLUMNS]
    return mean, covariance, peak + total.log()


def update_moments(
    cost: torch.Tensor,
    labels: torch.Tensor,
    coarse_ddf: torch.Tensor,
    coupling: float,
    sharpness: float,
    peak: torch.Tensor,
    moments: torch.Tensor,
) -> None:
    """Add some displacements to running sums of probabilities and their moments.

    Args:
        cost: ``(B, l, i, j, k)``.
        labels: ``(l, 3)`` in cells.
        coarse_ddf: ``(B, 3, i, j, k)`` contiguous, in cells.
        coupling: weight of the squared distance between label and field.
        sharpness: weight of the whole energy.
        peak: ``(B, 1, i, j, k)`` contiguous, largest logit so far, updated.
        moments: ``(B, 10, i, j, k)`` contiguous sums of ``exp(logit - peak)`` times 1, the three components and their
            six products, updated.
    """
    monomials = torch.cat([torch.ones_like(labels[:, :1]), labels, labels[:, ROWS] * labels[:, COLUMNS]], 1).T
    twin = compiled_twin("displacement_posterior", cost, coarse_ddf)
    if twin is not None:
        return twin.update_moments(cost, labels, coarse_ddf, coupling, sharpness, peak, moments, monomials)
    weights = soft_logits(cost, labels, coarse_ddf, coupling, sharpness)
    flat_peak, flat_moments = peak.flatten(2), moments.flatten(2)
    new_peak = torch.maximum(flat_peak, weights.amax(1, keepdim=True))
    weights.sub_(new_peak).exp_()
    flat_moments.mul_((flat_peak - new_peak).exp_()).baddbmm_(monomials.expand(len(cost), -1, -1), weights)
    flat_peak.copy_(new_peak)


def soft_logits(
    cost: torch.Tensor, labels: torch.Tensor, coarse_ddf: torch.Tensor, coupling: float, sharpness: float
) -> torch.Tensor:
    """``-sharpness * (cost + coupling * (|d|^2 - 2 d.u))``, flattened to ``(B, l, i * j * k)``.

    The term ``coupling * |u|^2`` is left out, since all displacements share it.
    """
    weight = sharpness * coupling
    logits = torch.baddbmm(
        cost.flatten(2), labels.expand(len(cost), -1, -1), coarse_ddf.flatten(2), beta=-sharpness, alpha=2 * weight
    )
    return logits.sub_(weight * labels.square().sum(1, keepdim=True))
