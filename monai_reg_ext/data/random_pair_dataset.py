# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
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
        groups: one per subject; only subjects of the same group are joined. For predictions by the folds of a
            cross-validation: at inference one network sees both scans and errs alike on both, two networks do not.

    Raises:
        ValueError: for a length below one, or where no two subjects can be joined.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        length: int,
        transform: Sequence[Callable] | Callable | None = None,
        seed: int = 0,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        groups = [None] * len(data) if groups is None else list(groups)
        if len(groups) != len(data):
            raise ValueError(f"groups needs one for each of the {len(data)} subjects, got {len(groups)}.")
        self.partners = [[other for other in range(len(data)) if groups[other] == group] for group in groups]
        self.candidates = [subject for subject in range(len(data)) if len(self.partners[subject]) > 1]
        if not self.candidates:
            raise ValueError(
                f"random pairs need two subjects at least, of one group, got {len(data)} in {len(set(groups))} groups."
            )
        super().__init__(data, length, transform, seed)

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        fixed = generator.choice(self.candidates)
        moving = generator.choice([partner for partner in self.partners[fixed] if partner != fixed])
        return join_subjects(self.data[int(fixed)], self.data[int(moving)])
