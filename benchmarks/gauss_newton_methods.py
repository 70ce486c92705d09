# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The ways to register features that ``gauss_newton_iterations.py`` compares, one field after every iteration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from monai_reg_ext.networks.blocks import AdamRefiner
from monai_reg_ext.networks.blocks.gauss_newton_estimator import GaussNewtonEstimator
from monai_reg_ext.networks.layers import box_filter, pool_to_grid, upsample_ddf

__all__ = ["ADAM", "METHODS", "STRIDE", "Level", "State", "adam", "gauss_newton"]

STRIDE = 4  # voxels between the control points
ADAM = "Adam"


class State(NamedTuple):
    """A field in voxels, everywhere ``(1, 3, *size)`` and at control points, and the CPU seconds since the features."""

    iteration: int
    seconds: float
    ddf: torch.Tensor
    at_points: torch.Tensor


class Level(NamedTuple):
    """Steps on features that are averaged over cells: of how many voxels, how many cells per control cell."""

    feature_spacing: int
    grid_spacing: int
    iterations: int
    regularization: tuple[float, float]


Method = Callable[[torch.Tensor, torch.Tensor], Iterator[State]]

ONE_LEVEL = (Level(1, STRIDE, 10, (125.0, 25.0)),)
THREE_LEVELS = (
    Level(8, 1, 3, (1600.0, 800.0)),
    Level(4, 1, 3, (400.0, 240.0)),
    Level(1, STRIDE, 4, (15.0, 15.0)),
)


def gauss_newton(
    fixed: torch.Tensor, moving: torch.Tensor, levels: Sequence[Level] = ONE_LEVEL, **settings: bool | int
) -> Iterator[State]:
    """Fields at the start and after every step, from features ``(1, F, *size)``.

    Args:
        fixed: see above.
        moving: see above.
        levels: one after the other, each from the field of the one before.
        settings: of :py:class:`GaussNewtonEstimator`.
    """
    size, cells_of = fixed.shape[2:], 1
    start, seconds, iteration = None, 0.0, 0
    for level in levels:
        begin = time.process_time()
        spacing = (level.feature_spacing,) * 3
        of_level = [pool_to_grid(volume, spacing) for volume in (fixed, moving)]
        if start is not None:
            finer = cells_of // level.feature_spacing
            start = upsample_ddf(start, (finer,) * 3, of_level[0].shape[2:])
        estimator = GaussNewtonEstimator(
            level.grid_spacing, level.iterations, level.regularization, feature_spacing=spacing, **settings
        )
        fields = estimator.fields(*of_level, start)
        field = next(fields)
        if iteration == 0:
            yield _state(0, 0.0, fixed.new_zeros((1, 3, *size)))
        for field in fields:
            iteration += 1
            seconds += time.process_time() - begin
            yield _gauss_newton_state(iteration, seconds, field, level, size)
            begin = time.process_time()
        start, cells_of = estimator.at_features(field, of_level[0].shape[2:]), level.feature_spacing
        seconds += time.process_time() - begin


def adam(fixed: torch.Tensor, moving: torch.Tensor, iterations: Sequence[int]) -> Iterator[State]:
    """Fields of the reference's Adam after some of its iterations, in ascending order.

    Features, originally a hundredth of those of Gauss-Newton, and field on control points; three box filters behind
    the upsampling, which do not count in the seconds.
    """
    begin = time.process_time()
    spacing = (STRIDE,) * 3
    fixed_cells, moving_cells = (pool_to_grid(volume / 100, spacing) for volume in (fixed, moving))
    # the reference leaves out its last step
    refiner = _WatchedAdam(STRIDE, max(iterations) + 1, 0.65, compat=True)
    refiner.watched = set(iterations)
    refiner(fixed_cells, moving_cells, fixed_cells.new_zeros((1, 3, *fixed_cells.shape[2:])))
    for iteration, (now, field) in enumerate(refiner.seen):
        if field is not None:
            ddf = box_filter(upsample_ddf(field, spacing, fixed.shape[2:]), (3, 3, 3), compat=True)
            yield _state(iteration, now - begin, ddf)


class _WatchedAdam(AdamRefiner):
    """Keeps the field after every watched iteration."""

    watched: set[int]

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        self.seen: list[tuple[float, torch.Tensor | None]] = []
        return super().forward(*features)

    def _field(self, control_values: torch.Tensor) -> torch.Tensor:
        field = super()._field(control_values)
        kept = field.clone() if len(self.seen) in self.watched else None
        self.seen.append((time.process_time(), kept))
        return field


def _gauss_newton_state(iteration: int, seconds: float, field: torch.Tensor, level: Level, size: torch.Size) -> State:
    stride = level.feature_spacing * level.grid_spacing
    ddf = upsample_ddf(field / level.grid_spacing, (stride,) * 3, size)
    return _state(iteration, seconds, ddf, field * level.feature_spacing if stride == STRIDE else None)


def _state(iteration: int, seconds: float, ddf: torch.Tensor, at_points: torch.Tensor | None = None) -> State:
    """A field without control points of its own at this stride is averaged over their cells."""
    return State(iteration, seconds, ddf, pool_to_grid(ddf, (STRIDE,) * 3) if at_points is None else at_points)


def _coupled(fixed: torch.Tensor, moving: torch.Tensor) -> Iterator[State]:
    return gauss_newton(fixed, moving, THREE_LEVELS)


def _diagonal(fixed: torch.Tensor, moving: torch.Tensor) -> Iterator[State]:
    return gauss_newton(fixed, moving, coupled=False, dense=False, compat=True)


METHODS: dict[str, Method] = {
    "coupled, three levels": _coupled,
    "coupled": gauss_newton,
    "diagonal (reference)": _diagonal,
    ADAM: lambda fixed, moving: adam(fixed, moving, (*range(11), 15, 20, 25, 50, 100, 200, 400, 800)),
}
