# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import Dataset

from monai_reg_ext.data.pairing import join_subjects

__all__ = ["RandomPairDataset"]


class RandomPairDataset(Dataset):
    """Random pairs of different subjects, drawn anew in every epoch.

    Which two subjects an item joins, and which of them is fixed, depends on ``seed``, the epoch and the index alone,
    hence not on the number of workers or the order of loading. As with ``DistributedSampler``, call
    :py:meth:`set_epoch` before each epoch, e.g. on Ignite's ``EPOCH_STARTED``.

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
        if length < 1:
            raise ValueError(f"length, the number of pairs per epoch, must be at least 1, got {length}.")
        super().__init__(data, transform)
        self.length = length
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers must see it change

    def set_epoch(self, epoch: int) -> None:
        """Choose the pairs of an epoch, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def _transform(self, index: int) -> Any:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is outside of the {self.length} pairs of an epoch.")
        generator = np.random.default_rng((self.seed, int(self._epoch), index % self.length))
        fixed, moving = generator.choice(len(self.data), size=2, replace=False)
        return self.transform(join_subjects(self.data[int(fixed)], self.data[int(moving)]))
