# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.nearest_points import nearest_points

__all__ = ["NeighbourGraph"]


class NeighbourGraph:
    """Which scattered points are neighbours: the nearest ones of each, and those of which it is one of the nearest.

    Neighbours weigh ``exp(-(d / s)^2 / 2)``, *s* the root mean square length of all edges.

    Args:
        points: ``(N, D)``, in a unit in which all axes mean the same, as mm.
        neighbours: how many nearest ones; fewer where there are not so many points.

    Attributes:
        rows, columns: ``(E,)`` int64, both ends of every edge; each edge is there in both directions.
        weights: ``(E,)``.

    Raises:
        ValueError: for fewer than two points, or no neighbours.
    """

    def __init__(self, points: torch.Tensor, neighbours: int = 15) -> None:
        if len(points) < 2 or neighbours < 1:
            raise ValueError(f"a graph needs two points and a neighbour at least, got {len(points)} and {neighbours}.")
        self.number = len(points)
        nearest = nearest_points(points, neighbours + 1)
        rows = torch.arange(self.number, device=points.device)[:, None].expand_as(nearest).flatten()
        edges = torch.cat([rows * self.number + nearest.flatten(), nearest.flatten() * self.number + rows]).unique()
        edges = edges[edges // self.number != edges % self.number]
        self.rows, self.columns = edges // self.number, edges % self.number
        squares = (points[self.rows] - points[self.columns]).square().sum(1)
        self.weights = torch.exp(-0.5 * squares / squares.mean().clamp(min=torch.finfo(squares.dtype).tiny))

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Weighted means ``(N, C)`` of the values ``(N, C)`` of each point's neighbours, without its own."""
        weights = self.weights.to(values)[:, None]
        total = torch.zeros_like(values).index_add_(0, self.rows, weights * values[self.columns])
        return total / weights.new_zeros(self.number, 1).index_add_(0, self.rows, weights)
