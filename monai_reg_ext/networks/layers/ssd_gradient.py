# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.box_filter import box_filter_adjoint, box_filter_bands
from monai_reg_ext.networks.layers.paired_points import paired_points, slabs_outside

__all__ = ["add_ssd_gradient"]


def add_ssd_gradient(
    gradient: torch.Tensor,
    fixed: torch.Tensor,
    moving: torch.Tensor,
    displacements: torch.Tensor,
    smooth_widths: Sequence[int],
    compat: bool,
    fixed_gradient: torch.Tensor,
    moving_gradient: torch.Tensor,
    mask: torch.Tensor | None = None,
    normalizer: torch.Tensor | None = None,
) -> None:
    """Pull the gradient of some costs back to the features.

    With weights *g* of the costs before smoothing, each pair adds ``2 g (fixed(x) - moving(x + d))`` to the fixed
    gradient at *x* and takes it from the moving one at *x + d*; a point that leaves the grid adds ``2 g fixed(x)``.

    Args:
        gradient: ``(B or 2B, l, i, j, k)`` contiguous, as the costs of :py:class:`SSDCostVolume`; overwritten.
        fixed: ``(B, C, i, j, k)`` contiguous.
        moving: ``(B, C, i, j, k)`` contiguous.
        displacements: ``(l, 3)`` int64 on the CPU, in cells.
        smooth_widths: box filters over space.
        compat: zero-padded box filters.
        fixed_gradient: ``(B, C, i, j, k)`` contiguous, added to.
        moving_gradient: ``(B, C, i, j, k)`` contiguous, added to.
        mask: ``(B or 2B, 1, i, j, k)`` factors of the costs before smoothing.
        normalizer: the same after it; both or neither.
    """
    twin = compiled_twin("ssd_gradient", fixed, moving)
    if twin is not None:
        bands = box_filter_bands(fixed.shape[2:], smooth_widths, compat, adjoint=True)
        return twin.add_ssd_gradient(
            gradient, fixed, moving, displacements, bands, fixed_gradient, moving_gradient, mask, normalizer
        )
    gradient = _unsmoothed(gradient, smooth_widths, compat, mask, normalizer)
    items, size = len(fixed), fixed.shape[2:]
    both = len(gradient) > items
    fixed_weight = gradient[:items].sum(1).flatten(1)
    moving_weight = gradient[items:].sum(1).flatten(1) if both else torch.zeros_like(fixed_weight)
    flat_gradient, flat_fixed, flat_moving = gradient.flatten(2), fixed.flatten(2), moving.flatten(2)
    flat_fixed_gradient, flat_moving_gradient = fixed_gradient.flatten(2), moving_gradient.flatten(2)
    for label, displacement in enumerate(displacements.tolist()):
        here, there = paired_points(displacement, size)
        _zero_outside(displacement, gradient[:items, label])
        weight = flat_gradient[:items, label, here]
        moving_weight[:, there] += weight
        if both:
            _zero_outside([-shift for shift in displacement], gradient[items:, label])
            fixed_weight[:, here] += flat_gradient[items:, label, there]
            weight = weight + flat_gradient[items:, label, there]
        flat_fixed_gradient[..., here].addcmul_(weight.unsqueeze(1), flat_moving[..., there], value=-2)
        flat_moving_gradient[..., there].addcmul_(weight.unsqueeze(1), flat_fixed[..., here], value=-2)
    flat_fixed_gradient.addcmul_(fixed_weight.unsqueeze(1), flat_fixed, value=2)
    flat_moving_gradient.addcmul_(moving_weight.unsqueeze(1), flat_moving, value=2)


def _unsmoothed(
    gradient: torch.Tensor,
    smooth_widths: Sequence[int],
    compat: bool,
    mask: torch.Tensor | None,
    normalizer: torch.Tensor | None,
) -> torch.Tensor:
    if mask is None or normalizer is None:
        return box_filter_adjoint(gradient, smooth_widths, compat)
    return box_filter_adjoint(gradient.mul_(normalizer), smooth_widths, compat).mul_(mask)


def _zero_outside(displacement: Sequence[int], gradient: torch.Tensor) -> None:
    for slab in slabs_outside(displacement, gradient.shape[1:]):
        gradient[slab] = 0
