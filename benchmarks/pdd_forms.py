# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The search over probabilities of displacements, ours and as the paper's code writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from monai_reg_ext.networks.layers import (
    DisplacementDistribution,
    SearchGrid,
    expected_displacement,
    mean_field,
    sample_axes,
    window_cost,
)

__all__ = ["FORMS", "REFERENCE", "Form"]

REFERENCE = "pooling and grid_sample"


class Form:
    """A way to compute everything; features ``(1, C, i, j, k)``, the grid counts in their cells."""

    def logits(self, fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        """``(1, *window, *size)``."""
        raise NotImplementedError

    def field(self, fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        """``(1, 3, *size)`` expected displacements."""
        raise NotImplementedError

    def seen(self, probabilities: torch.Tensor, values: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        """``(1, C, *size)`` expected values."""
        raise NotImplementedError


class _Ours(Form):
    def logits(self, fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        return -mean_field(window_cost(sample_axes(fixed, grid.points), moving, grid))

    def field(self, fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        cost = mean_field(window_cost(sample_axes(fixed, grid.points), moving, grid))
        return expected_displacement(cost, grid)

    def seen(self, probabilities: torch.Tensor, values: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        return DisplacementDistribution(probabilities, grid).seen(values)


class _Reference(Form):
    """Slabs of control points are sampled at eight corners; windows and points are pooled with padding, permuted."""

    def logits(self, fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        at_points = sample_axes(fixed, grid.points).flatten(2)[0]
        slabs = []
        for rows in torch.arange(at_points.shape[1]).split(grid.size[1] * grid.size[2]):
            slabs.append(checkpoint(_slab, at_points[:, rows], moving, rows, grid, use_reentrant=False))
        cost = torch.cat(slabs)
        belief = checkpoint(_round, cost, grid, use_reentrant=False)
        belief = checkpoint(_round, cost + belief, grid, use_reentrant=False)
        return -belief.T.reshape(1, *grid.window, *grid.size)

    def field(self, fixed: torch.Tensor, moving: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        probabilities = self.logits(fixed, moving, grid).flatten(1, 3).flatten(2)[0].softmax(0)
        return (probabilities.T @ grid.displacements).T.reshape(1, 3, *grid.size)

    def seen(self, probabilities: torch.Tensor, values: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
        flat = probabilities.flatten(1, 3).flatten(2)[0].T
        rows = torch.arange(len(flat)).split(grid.size[1] * grid.size[2])
        seen = [(_samples(values, one, grid) * flat[one]).sum(-1) for one in rows]
        return torch.cat(seen, 1).reshape(1, -1, *grid.size)


def _slab(at_points: torch.Tensor, moving: torch.Tensor, rows: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    return (at_points[:, :, None] - _samples(moving, rows, grid)).square().sum(0)


def _samples(volume: torch.Tensor, rows: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    """``(C, points, displacements)``."""
    places = torch.cartesian_prod(*grid.points)[rows, None] + grid.displacements
    halves = torch.tensor([(extent - 1) / 2 for extent in volume.shape[2:]])
    normalized = (places / halves - 1).flip(-1)[None, None]
    return F.grid_sample(volume, normalized, padding_mode="border", align_corners=True)[0, :, 0]


def _round(cost: torch.Tensor, grid: SearchGrid) -> torch.Tensor:
    windows = F.pad(cost.view(1, -1, *grid.window), [3] * 6, mode="replicate")
    windows = _averaged(-F.max_pool3d(-windows, 3, stride=1)).flatten(2)[0]
    points = F.pad(windows.T.reshape(1, -1, *grid.size), [2] * 6, mode="replicate")
    return _averaged(points).flatten(2)[0].T.contiguous()


def _averaged(volume: torch.Tensor) -> torch.Tensor:
    return F.avg_pool3d(F.avg_pool3d(volume, 3, stride=1), 3, stride=1)


FORMS: dict[str, Form] = {"ours": _Ours(), REFERENCE: _Reference()}
