# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import Dataset

__all__ = ["EpochDataset"]


class EpochDataset(Dataset):
    """Items that are drawn anew in every epoch.

    What an item is depends on ``seed``, the epoch and the index alone, hence not on the number of workers or the order
    of loading. As with ``DistributedSampler``, call :py:meth:`set_epoch` before each epoch, e.g. on Ignite's
    ``EPOCH_STARTED``. A subclass gives :py:meth:`draw`.

    Args:
        data: what items are made of.
        length: number of items per epoch.
        transform: applied to each item.
        seed: of the draws.

    Raises:
        ValueError: for a length below one.
    """

    def __init__(
        self,
        data: Sequence[Any],
        length: int,
        transform: Sequence[Callable] | Callable | None = None,
        seed: int = 0,
    ) -> None:
        if length < 1:
            raise ValueError(f"length, the number of pairs per epoch, must be at least 1, got {length}.")
        super().__init__(data, transform)
        self.length = length
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers must see it change

    def draw(self, generator: np.random.Generator) -> Any:
        """An item, before the transform."""
        raise NotImplementedError(f"{type(self).__name__} has no draw.")

    def set_epoch(self, epoch: int) -> None:
        """Choose the items of an epoch, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def _transform(self, index: int) -> Any:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is outside of the {self.length} pairs of an epoch.")
        return self.transform(self.draw(np.random.default_rng((self.seed, int(self._epoch), index % self.length))))
