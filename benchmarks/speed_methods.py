# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The two implementations of ConvexAdam whose speed is compared, cut into the same stages."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from speed_meter import Cost, Meter, median, total
from torch.optim.optimizer import register_optimizer_step_post_hook

from monai_reg_ext.networks.blocks import AdamRefiner, CoupledConvexEstimator, MindSSC, coupled_convex_estimator
from monai_reg_ext.networks.nets import RegistrationNet

__all__ = [
    "INVERSE_CONSISTENCY",
    "METHODS",
    "STAGES",
    "ConvexAdam",
    "Ours",
    "least_bytes",
    "measured_call",
    "measured_search",
]

SEARCH_SPACING = 6
HALF_WIDTH = 4
REFINER_SPACING = 2
ITERATIONS = 80
CHANNELS = 12
ROUNDS = 15
FLOAT = 4  # bytes
INVERSE_CONSISTENCY = "inverse consistency"
STAGES = (
    "whole call",
    "MIND of one image",
    "correlation + coupled convex",
    INVERSE_CONSISTENCY,
    "one Adam iteration",
    "all Adam iterations",
    "rest",
)
_LAP = "Adam iteration"


class Ours:
    """This package at the published defaults of ConvexAdam."""

    def __init__(self) -> None:
        estimator = CoupledConvexEstimator(SEARCH_SPACING, HALF_WIDTH, ROUNDS)
        self.network = RegistrationNet(MindSSC(), estimator, AdamRefiner(REFINER_SPACING, ITERATIONS))

    @torch.no_grad()
    def register(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Field ``(3, I, J, K)`` on the CPU for images ``(I, J, K)``."""
        return self.network.register(moving[None, None], fixed[None, None])[0].cpu()

    @torch.no_grad()
    def search(
        self, fixed: torch.Tensor, moving: torch.Tensor, half_width: int, spacing: int, memory: int | None
    ) -> torch.Tensor:
        """Both directions of the discrete search on features ``(1, 12, i, j, k)``, with inverse consistency."""
        return CoupledConvexEstimator(spacing, half_width, ROUNDS, memory=memory)(fixed, moving)

    @property
    def watched(self) -> list[tuple[Any, str, str]]:
        network = self.network
        return [
            (network.features, "pooled", "MIND"),
            (network.estimator, "forward", "search"),
            (coupled_convex_estimator, "make_inverse_consistent", INVERSE_CONSISTENCY),
            (network.refiners[0], "forward", "Adam"),
        ]

    def stages(self, costs: dict[str, list[Cost]]) -> dict[str, Cost]:
        """Costs of what is watched to costs of :py:data:`STAGES`."""
        agreed, search = total(costs[INVERSE_CONSISTENCY]), total(costs["search"])
        return _stages(
            total(costs["MIND"]), search.minus(agreed, search.peak), agreed, costs[_LAP], total(costs["Adam"]), costs
        )


class ConvexAdam:
    """The package of its authors at its defaults, in float32."""

    @property
    def module(self) -> ModuleType:
        from convexAdam import convex_adam_MIND

        return convex_adam_MIND

    def register(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Field ``(3, I, J, K)`` on the CPU for images ``(I, J, K)``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about grid_sample's convention
            field = self.module.convex_adam_pt(fixed, moving, dtype=torch.float32, device=fixed.device)
        return torch.from_numpy(field).movedim(-1, 0)

    def search(
        self, fixed: torch.Tensor, moving: torch.Tensor, half_width: int, spacing: int, memory: int | None
    ) -> torch.Tensor:
        """Both directions of the discrete search on features ``(1, 12, i, j, k)``; it knows no limit of memory."""
        size = [cells * spacing for cells in fixed.shape[2:]]
        identity = half_width * torch.eye(3, 4)[None]
        window = torch.nn.functional.affine_grid(identity, [1, 1, *[2 * half_width + 1] * 3], align_corners=True)
        labels = window.permute(0, 4, 1, 2, 3).reshape(3, -1, 1)
        for pair in ((fixed, moving), (moving, fixed)):
            cost, label = self.module.correlate(*pair, half_width, spacing, size, CHANNELS)
            field = self.module.coupled_convex(cost, label, labels, spacing, size)
        return field

    @property
    def watched(self) -> list[tuple[Any, str, str]]:
        names = {
            "MINDSSC": "MIND",
            "correlate": "search",
            "coupled_convex": "search",
            "inverse_consistency": INVERSE_CONSISTENCY,
        }
        return [(self.module, function, name) for function, name in names.items()]

    def stages(self, costs: dict[str, list[Cost]]) -> dict[str, Cost]:
        """Costs of what is watched to costs of :py:data:`STAGES`."""
        laps = costs[_LAP]
        # no function of its own: the laps, and as much for the first one, which has no start
        adam = total(laps).scaled((len(laps) + 1) / len(laps))
        return _stages(
            total(costs["MIND"]), total(costs["search"]), total(costs[INVERSE_CONSISTENCY]), laps, adam, costs
        )


METHODS = {"ours": Ours, "convexAdam": ConvexAdam}


def _stages(
    mind: Cost, search: Cost, agreed: Cost, laps: list[Cost], adam: Cost, costs: dict[str, list[Cost]]
) -> dict[str, Cost]:
    (whole,) = costs["whole call"]
    rest = whole.minus(total([mind, search, agreed, adam]))
    values = (whole, mind.scaled(1 / 2), search, agreed, median(laps), adam, rest)
    return dict(zip(STAGES, values, strict=True))


def measured_call(method: Ours | ConvexAdam, fixed: torch.Tensor, moving: torch.Tensor) -> dict[str, Cost]:
    """Costs of :py:data:`STAGES` within one registration."""
    meter = Meter()
    with _watching(method, meter), meter.stage("whole call"):
        method.register(fixed, moving)
    return method.stages(meter.costs)


def measured_search(
    method: Ours | ConvexAdam,
    fixed: torch.Tensor,
    moving: torch.Tensor,
    half_width: int,
    spacing: int,
    memory: int | None,
) -> Cost:
    """Cost of correlation and coupled convex optimisation in both directions, without inverse consistency.

    Args:
        method: whose search.
        fixed: ``(1, 12, i, j, k)`` features.
        moving: ``(1, 12, i, j, k)`` features.
        half_width: largest displacement along each axis, in cells.
        spacing: voxels per cell.
        memory: bytes that ours may spend on keeping costs.
    """
    meter = Meter()
    with _watching(method, meter), meter.stage("both"):
        method.search(fixed, moving, half_width, spacing, memory)
    (both,) = meter.costs["both"]
    agreed = meter.costs.get(INVERSE_CONSISTENCY)
    return both.minus(total(agreed), both.peak) if agreed else both


@contextmanager
def _watching(method: Ours | ConvexAdam, meter: Meter) -> Iterator[None]:
    """Stages are functions, replaced for the time being; Adam's iterations are told by the optimiser's own hook."""
    with ExitStack() as stack:
        for owner, function, name in method.watched:
            watched = meter.watched(getattr(owner, function), name)
            stack.enter_context(mock.patch.object(owner, function, watched))
        stack.callback(register_optimizer_step_post_hook(lambda *_: meter.lap(_LAP)).remove)
        yield
        meter.forget(_LAP)


def least_bytes(size: Sequence[int]) -> dict[str, int]:
    r"""Bytes that our stages cannot avoid to read or write, every value once per sweep that needs it, in float32.

    With *N* voxels, *n* and *m* points of the control grids of search and refiner, *F* = 12 features, *L* = 729
    displacements and the 7 passes of the coupled search:

    ========================  ==================================================================================
    MIND of one image         image twice (mean variance, descriptors), means over both grids: :math:`2N + F(n + m)`
    correlation + search      features; costs of both directions written once and read by all but the first of 7
                              passes: :math:`2Fn + 7 \cdot 2Ln`
    inverse consistency       15 rounds, both fields read and written: :math:`15 \cdot 12 n`
    one Adam iteration        features :math:`2Fm`; and :math:`3m` each for: field in, gradient out; gradient in and
                              out of the filter; values, two moments and gradient into Adam, three of them out; values
                              in and field out of the filter: :math:`(24 + 39) m`
    rest                      the field: :math:`3N`
    ========================  ==================================================================================
    """
    voxels = math.prod(size)
    points, cells = (math.prod(-(-extent // step) for extent in size) for step in (SEARCH_SPACING, REFINER_SPACING))
    labels = (2 * HALF_WIDTH + 1) ** 3
    iteration = (2 * CHANNELS + 39) * cells
    mind = 2 * voxels + CHANNELS * (points + cells)
    search = 2 * CHANNELS * points + 7 * 2 * labels * points
    agreed = ROUNDS * 12 * points
    whole = 2 * mind + search + agreed + ITERATIONS * iteration + 3 * voxels
    values = (whole, mind, search, agreed, iteration, ITERATIONS * iteration, 3 * voxels)
    return {stage: FLOAT * count for stage, count in zip(STAGES, values, strict=True)}
