# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from monai_reg_ext.networks.layers.thin_plate_spline import thin_plate_field

__all__ = ["PRE_REGISTRATION_MODES", "PreRegistrationAugmentation", "PreRegistrationMode"]


class PreRegistrationMode(NamedTuple):
    """How good a start is: shares of a first method's displacements and of the true ones, and noise.

    - ``prediction``, ``truth``: factors on the displacements of the points.
    - ``noise``: standard deviation of what is added to each component, where the grid reaches from -1 to 1.
    - ``smoothing``: of the spline through the points.
    """

    prediction: float
    truth: float
    noise: float = 0.0
    smoothing: float = 0.1


PRE_REGISTRATION_MODES = (
    PreRegistrationMode(1, 0),
    PreRegistrationMode(0, 0),
    PreRegistrationMode(0.5, 0.5),
    PreRegistrationMode(0.5, 0.5, noise=0.2, smoothing=1.0),
    PreRegistrationMode(0.5, 0),
)


class PreRegistrationAugmentation(nn.Module):
    """Random initial fields to train a method with that later starts from anything: a first method's result or nothing.

    Each item gets one of the modes, all equally likely, whose displacements of the points become a dense field by
    :py:func:`thin_plate_field`.

    Args:
        modes: what the initial fields are like; ``(prediction, truth, noise, smoothing)`` each.
        spacing: at most so many voxels between evaluations of the spline.
        kernel: see :py:class:`ThinPlateSpline`.

    Shape:
        - points, truth, prediction: ``(B, N, D)`` in voxels of the field's grid; displacements of the points, the true
          ones and those of a first method, ``None`` where there is none: 0. Rows that are not finite do not count, so
          that pairs with fewer points fit into a batch.
        - output: ``(B, D, *size)`` in voxels, no gradients.

    Raises:
        ValueError: without modes; as :py:func:`thin_plate_field`.

    Source: Learn2Optimise, training with keypoints.
    """

    def __init__(
        self,
        modes: Sequence[Sequence[float]] = PRE_REGISTRATION_MODES,
        spacing: int = 4,
        kernel: str = "plate",
    ) -> None:
        super().__init__()
        if not modes:
            raise ValueError("PreRegistrationAugmentation needs at least one mode, got none.")
        self.modes = [PreRegistrationMode(*mode) for mode in modes]
        self.spacing = spacing
        self.kernel = kernel

    @torch.no_grad()
    def forward(
        self,
        points: torch.Tensor,
        truth: torch.Tensor,
        size: Sequence[int],
        generator: torch.Generator,
        prediction: torch.Tensor | None = None,
    ) -> torch.Tensor:
        prediction = torch.zeros_like(truth) if prediction is None else prediction
        numbers = torch.randint(len(self.modes), (len(points),), generator=generator, device=generator.device)
        items = zip(numbers.tolist(), points.split(1), truth.split(1), prediction.split(1), strict=True)
        return torch.cat([self._field(self.modes[number], *item, size, generator) for number, *item in items])

    def _field(
        self,
        mode: PreRegistrationMode,
        points: torch.Tensor,
        truth: torch.Tensor,
        prediction: torch.Tensor,
        size: Sequence[int],
        generator: torch.Generator,
    ) -> torch.Tensor:
        start = mode.prediction * prediction + mode.truth * truth
        if mode.noise:
            noise = torch.randn(truth.shape, generator=generator, device=generator.device).to(truth)
            start = start + mode.noise * noise * truth.new_tensor([(extent - 1) / 2 for extent in size])
        known = (points.isfinite() & start.isfinite()).all(2)[0]
        points, start = points[:, known], start[:, known]
        if not start.any():
            return start.new_zeros(1, start.shape[2], *size)
        return thin_plate_field(points, start, size, mode.smoothing, self.spacing, self.kernel)
