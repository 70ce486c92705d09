# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import torch

from monai_reg_ext.networks.layers.cost_volume import CostVolume

__all__ = ["DenseCostVolume"]


class DenseCostVolume(CostVolume):
    """A cost volume that exists as a whole, for example one that a network has learned.

    Args:
        cost: ``(B, L, i, j, k)``. Half-precision costs are searched in float32.
        labels: ``(L, 3)`` displacement of each label in cells, in any order.

    Raises:
        ValueError: when costs and labels do not belong together.
    """

    def __init__(self, cost: torch.Tensor, labels: torch.Tensor) -> None:
        if cost.dim() != 5 or labels.shape != (cost.shape[1], 3):
            raise ValueError(
                "A cost volume needs cost (B, L, i, j, k) and labels (L, 3), got cost of shape "
                f"{tuple(cost.shape)} and labels of shape {tuple(labels.shape)}."
            )
        dtype = torch.promote_types(cost.dtype, torch.float32)
        super().__init__(labels.to(cost.device, dtype), cost.shape[0], cost.shape[2:], [cost])

    def compute(self, start: int, stop: int, passing: bool) -> torch.Tensor:
        return self.inputs[0][:, start:stop].to(self.labels.dtype)

    @torch.no_grad()
    def pull_back(self, chunk_gradient: Callable[[int, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        gradient = torch.empty_like(self.inputs[0])
        for start, cost in self:
            gradient[:, start : start + cost.shape[1]] = chunk_gradient(start, cost)
        return (gradient,)
