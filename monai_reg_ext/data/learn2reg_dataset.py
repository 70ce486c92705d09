# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from monai_reg_ext.data.learn2reg import Learn2RegTask
from monai_reg_ext.data.pair_dataset import PairDataset

__all__ = ["Learn2RegDataset"]


class Learn2RegDataset(PairDataset):
    """The pairs of one split of a Learn2Reg task, loaded and transformed one by one.

    Args:
        dataset_dir: the task's folder or its JSON, see :py:class:`~monai_reg_ext.data.Learn2RegTask`.
        split: ``"registration_val"``, ``"registration_test"``, ``"training_paired_images"`` or ``"training"``, see
            :py:meth:`~monai_reg_ext.data.Learn2RegTask.pairs`.
        transform: what to do with each pair's dictionary, e.g. load its files.
        number: at most so many pairs.
        seed: of the random pairs of ``"training"``.
        on_error: see :py:class:`~monai_reg_ext.data.PairDataset`.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str = "registration_val",
        transform: Sequence[Callable] | Callable | None = None,
        number: int | None = None,
        seed: int = 0,
        on_error: str = "raise",
    ) -> None:
        on_missing = "raise" if on_error == "raise" else "keep"
        super().__init__(Learn2RegTask(dataset_dir).pairs(split, number, seed, on_missing), transform, on_error)
