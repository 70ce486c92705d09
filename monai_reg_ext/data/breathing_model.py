# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.data.breathing_patients import BreathingPatient
from monai_reg_ext.data.lung_motion import LungMotion

__all__ = ["BreathingModel"]

SMALLEST_DETERMINANT = 0.2
FARTHEST = 2.0  # standard deviations of a mode
SHRINKAGE = 0.8


class BreathingModel:
    """Statistical model of breathing: the mean of real patients' motions and the modes in which they differ.

    A mirrored twin of every patient is learnt too, so that left and right are alike.

    Args:
        patients: see :py:func:`breathing_patients`.
        modes: how many of the largest modes motions are drawn from.

    Attributes:
        motions: of the patients themselves, each followed by its mirrored twin.
        mean: coefficients of the mean motion, see :py:class:`LungMotion`.
        modes: ``(modes, 3, 7, 7, 8)``, each as long as its standard deviation, the largest first.
        explained: part of all variance that the modes hold.

    Raises:
        ValueError: for fewer than two patients or no modes.
    """

    def __init__(self, patients: Sequence[BreathingPatient], modes: int = 8) -> None:
        if len(patients) < 2 or modes < 1:
            raise ValueError(f"a model needs at least two patients and a mode, got {len(patients)} and modes={modes}.")
        fitted = [LungMotion.fit(patient) for patient in patients]
        self.motions = [twin for motion in fitted for twin in (motion, motion.mirrored())]
        coefficients = torch.stack([motion.coefficients for motion in self.motions])
        self.mean = coefficients.mean(0)
        _, deviations, directions = torch.linalg.svd((coefficients - self.mean).flatten(1), full_matrices=False)
        scaled = deviations[:modes, None] * directions[:modes] / len(self.motions) ** 0.5
        self.modes = scaled.unflatten(1, self.mean.shape)
        self.explained = float(deviations[:modes].square().sum() / deviations.square().sum())

    def draw(self, generator: torch.Generator) -> LungMotion:
        """A new motion that does not fold: the determinant of its Jacobian stays above 0.2.

        Amplitudes are normally distributed and cut at two standard deviations; all shrink together until nothing folds.
        """
        amplitudes = torch.randn(len(self.modes), generator=generator, dtype=torch.float64).clamp(-FARTHEST, FARTHEST)
        deviation = torch.tensordot(amplitudes, self.modes, 1)
        motion = LungMotion(self.mean + deviation, "drawn")
        while motion.smallest_determinant() <= SMALLEST_DETERMINANT:
            deviation = SHRINKAGE * deviation
            motion = LungMotion(self.mean + deviation, "drawn")
        return motion
