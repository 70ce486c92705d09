# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from monai_reg_ext.data.epoch_dataset import EpochDataset
from monai_reg_ext.data.pairing import join_subjects

__all__ = ["RandomPairDataset"]


class RandomPairDataset(EpochDataset):
    """Random pairs of different subjects, drawn anew in every epoch; see :py:class:`EpochDataset`.

    Args:
        data: one dictionary per subject with ``image`` and, for instance, ``label`` and ``mask``; a list of paths or
            a ``CacheDataset`` of loaded subjects.
        length: number of pairs per epoch.
        transform: applied to each pair, whose keys are those of :py:func:`~monai_reg_ext.data.join_subjects`.
        seed: of the random pairs.

    Raises:
        ValueError: for fewer than two subjects or a length below one.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        length: int,
        transform: Sequence[Callable] | Callable | None = None,
        seed: int = 0,
    ) -> None:
        if len(data) < 2:
            raise ValueError(f"random pairs need at least two subjects, got {len(data)}.")
        super().__init__(data, length, transform, seed)

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        fixed, moving = generator.choice(len(self.data), size=2, replace=False)
        return join_subjects(self.data[int(fixed)], self.data[int(moving)])
