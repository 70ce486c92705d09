# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The soft search of the training benchmark, ours and written with plain autograd in two ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from monai_reg_ext.networks.layers import SSDCostVolume, coupled_convex, displacement_labels

__all__ = ["NO_SEARCH", "REFERENCE", "SEARCHES"]

NO_SEARCH, REFERENCE = "no search", "autograd, unfolded"


def ours(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    half_width: int,
    couplings: Sequence[float],
    sharpness: float,
    memory: int | None = None,
) -> torch.Tensor:
    volume = SSDCostVolume(fixed, moving, (half_width,) * 3, memory=memory)
    return coupled_convex(volume, couplings, sharpness)


def ours_without_volume(*args: torch.Tensor | float | Sequence[float]) -> torch.Tensor:
    return ours(*args, memory=0)


def no_search(fixed: torch.Tensor, moving: torch.Tensor, *_: object) -> torch.Tensor:
    """A field at no cost, for what everything around the search takes."""
    return (fixed - moving)[:, :3]


def unfolded(
    fixed: torch.Tensor, moving: torch.Tensor, half_width: int, couplings: Sequence[float], sharpness: float
) -> torch.Tensor:
    """As public 2-D code does it: all differences at once, then everything that the formula says, step by step."""
    width = 2 * half_width + 1
    windows = F.pad(moving, [half_width] * 6).unfold(2, width, 1).unfold(3, width, 1).unfold(4, width, 1)
    cost = (fixed[..., None, None, None] - windows).square().sum(1)
    cost = _twice_pooled(cost.flatten(4).movedim(-1, 1))
    steps = torch.arange(-half_width, half_width + 1).to(cost)
    mesh = torch.cartesian_prod(steps, steps, steps).T[None, :, :, None, None, None]
    field = torch.zeros_like(fixed[:, :3])
    for coupling in (0.0, *couplings):
        distance = (mesh - field[:, :, None]).square().sum(1)
        probability = (-sharpness * (cost + coupling * distance)).softmax(1)
        field = _pooled((probability[:, None] * mesh).sum(2))
    return field


def looped(
    fixed: torch.Tensor, moving: torch.Tensor, half_width: int, couplings: Sequence[float], sharpness: float
) -> torch.Tensor:
    """With care for memory: differences of one displacement at a time, computed again for their gradient; no meshes."""
    labels = displacement_labels((half_width,) * 3, fixed.detach())
    costs = [
        checkpoint(_cost_of_displacement, fixed, moving, displacement, use_reentrant=False)
        for displacement in labels.int().tolist()
    ]
    cost = torch.stack(costs, 1)
    del costs
    cost = _twice_pooled(cost)
    norm = labels.square().sum(1)[None, :, None, None, None]
    field = torch.zeros_like(fixed[:, :3])
    for coupling in (0.0, *couplings):
        logits = -sharpness * cost
        if coupling > 0:
            logits = logits + sharpness * coupling * (2 * torch.einsum("lc,bcijk->blijk", labels, field) - norm)
        field = _pooled(torch.einsum("lc,blijk->bcijk", labels, logits.softmax(1)))
    return field


def _cost_of_displacement(fixed: torch.Tensor, moving: torch.Tensor, displacement: Sequence[int]) -> torch.Tensor:
    i, j, k = displacement
    # to pad by a negative number is to cut
    return (fixed - F.pad(moving, [-k, k, -j, j, -i, i])).square().sum(1)


def _pooled(volume: torch.Tensor) -> torch.Tensor:
    return F.avg_pool3d(volume, 3, stride=1, padding=1, count_include_pad=False)


def _twice_pooled(volume: torch.Tensor) -> torch.Tensor:
    return _pooled(_pooled(volume))


SEARCHES: dict[str, Callable[..., torch.Tensor]] = {
    "ours": ours,
    "ours, nothing kept": ours_without_volume,
    NO_SEARCH: no_search,
    "autograd, displacements one by one": looped,
    REFERENCE: unfolded,
}
