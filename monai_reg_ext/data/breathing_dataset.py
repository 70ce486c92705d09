# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import Dataset

from monai_reg_ext.data.breathing_carrier import BreathingCarrier
from monai_reg_ext.data.breathing_model import BreathingModel
from monai_reg_ext.data.breathing_pair import breathing_pair
from monai_reg_ext.data.epoch_dataset import EpochDataset
from monai_reg_ext.data.lung_motion import LungMotion

__all__ = ["BreathingDataset", "RandomBreathingDataset"]


class RandomBreathingDataset(EpochDataset):
    """Semi-synthetic pairs to train on: a random scan, moved by a random motion, drawn anew in every epoch.

    Args:
        data: the scans: dictionaries of the arguments of :py:class:`BreathingCarrier`, or such carriers.
        model: what motions are drawn from.
        length: number of pairs per epoch.
        transform: applied to each pair, see :py:func:`breathing_pair`.
        seed: of scans, motions, noise and points; see :py:class:`EpochDataset`.
        options: further arguments of :py:func:`breathing_pair`.

    Raises:
        ValueError: without a scan, or for a length below one.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any] | BreathingCarrier],
        model: BreathingModel,
        length: int,
        transform: Sequence[Callable] | Callable | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(_carriers(data), length, transform, seed)
        self.model = model
        self.options = options

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        carrier = self.data[int(generator.integers(len(self.data)))]
        of_pair = torch.Generator().manual_seed(int(generator.integers(2**62)))
        return breathing_pair(carrier, self.model.draw(of_pair), of_pair, **self.options)


class BreathingDataset(Dataset):
    """Semi-synthetic pairs to test on: every scan moved by every motion, always the same.

    Args:
        data: the scans, see :py:class:`RandomBreathingDataset`.
        motions: for instance ``motions`` of a :py:class:`BreathingModel` of test patients: their own, and mirrored.
        transform: applied to each pair.
        seed: of noise and points.
        options: further arguments of :py:func:`breathing_pair`.

    Raises:
        ValueError: without a scan or a motion.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any] | BreathingCarrier],
        motions: Sequence[LungMotion],
        transform: Sequence[Callable] | Callable | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not motions:
            raise ValueError("a breathing data set needs at least one motion, got none.")
        super().__init__([(carrier, motion) for carrier in _carriers(data) for motion in motions], transform)
        self.seed = seed
        self.options = options

    def _transform(self, index: int) -> Any:
        carrier, motion = self.data[index]
        number = int(np.random.default_rng((self.seed, index % len(self.data))).integers(2**62))
        generator = torch.Generator().manual_seed(number)
        return self.transform(breathing_pair(carrier, motion, generator, **self.options))


def _carriers(data: Sequence[Mapping[str, Any] | BreathingCarrier]) -> list[BreathingCarrier]:
    if not data:
        raise ValueError("a breathing data set needs at least one scan with a mask of its lungs, got none.")
    return [scan if isinstance(scan, BreathingCarrier) else BreathingCarrier(**scan) for scan in data]
