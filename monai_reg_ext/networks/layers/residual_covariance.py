# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.cost_volume import CostVolume
from monai_reg_ext.networks.layers.displacement_posterior import displacement_moments
from monai_reg_ext.networks.layers.fill_outside import FillOutside
from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS, entries_of, matrices_of, symmetric_product

__all__ = ["LABEL_VARIANCE", "residual_covariance"]

# of all displacements that a label, the nearest whole one, stands for
LABEL_VARIANCE = 1 / 12

# Chosen on training scans of HippocampusMR and AbdomenMR that were deformed by made fields at two levels of noise:
# errors of any predicted size are there on average as large as predicted, to some 10 %.
_SHARPNESS = 18.0
_PRIOR_VARIANCE = 4.0
_SMOOTH_WIDTHS = (3, 3, 3)
_SHARE_LEFT = 0.08


def residual_covariance(cost_volume: CostVolume, mask: torch.Tensor | None = None) -> torch.Tensor:
    """How far a field may still be off: mean outer product of the displacement left to find at every control point.

    1. The posterior of every control point alone, see :py:func:`displacement_posterior`: around no displacement, kept
       within some two cells where costs tell nothing. Its sharpness is 18 for costs that are 1 on average over all
       displacements, so that features of any scale give the same. It has to be that low for labels that are a cell
       apart to show a width; a label's own width is added.
    2. A smooth field follows those neighbours that know more. Hence the inverse covariances, which measure what is
       known, are averaged over the neighbourhood in which a field is smooth.
    3. Neighbours that know the same know more together: of the variance a share is left, the same everywhere.
    4. Where neighbours agree that something is left to find, the mean of what they expect, weighed by what they know,
       is missed: its outer product is added.

    Args:
        cost_volume: costs of one pair (``batch`` 1), features of the fixed image against those of the **registered**
            moving one.
        mask: ``(1, 1, i, j, k)``, not 0 where costs may be believed; elsewhere the nearest ones inside go on.

    Returns:
        ``(1, 6, i, j, k)`` in cells squared, entries 00, 01, 02, 11, 12, 22; positive definite. No gradients.
    """
    nowhere = cost_volume.labels.new_zeros(1, 3, *cost_volume.size)
    sharpness = _SHARPNESS / _typical_cost(cost_volume, mask)
    mean, covariance, _ = displacement_moments(cost_volume, nowhere, 1 / (2 * sharpness * _PRIOR_VARIANCE), sharpness)
    known = _inverse(_plus_label_variance(covariance))
    known_and_pull = torch.cat([known, symmetric_product(known, mean)], 1)
    known, pull = box_filter(FillOutside(mask)(known_and_pull), _SMOOTH_WIDTHS).split([6, 3], 1)
    doubt = _inverse(known)
    missed = symmetric_product(doubt, pull)
    return _SHARE_LEFT * doubt + missed[:, ROWS] * missed[:, COLUMNS]


def _typical_cost(cost_volume: CostVolume, mask: torch.Tensor | None) -> float:
    """Mean cost of a displacement, over points weighed by their own mean: those without contrast have no say."""
    mean = sum(cost.sum(1, keepdim=True) for _, cost in cost_volume) / len(cost_volume.labels)
    if mask is not None:
        mean = mean * (mask != 0)
    return max(1e-12, (mean.square().sum() / mean.sum().clamp(min=1e-12)).item())


def _plus_label_variance(covariance: torch.Tensor) -> torch.Tensor:
    diagonal = covariance.new_tensor([1, 0, 0, 1, 0, 1]).view(1, 6, 1, 1, 1)
    return covariance + LABEL_VARIANCE * diagonal


def _inverse(entries: torch.Tensor) -> torch.Tensor:
    """Entries ``(B, 6, i, j, k)`` of the inverse matrices."""
    matrices = matrices_of(entries).movedim((1, 2), (-2, -1))
    return entries_of(torch.linalg.inv(matrices).movedim((-2, -1), (1, 2))).contiguous()
