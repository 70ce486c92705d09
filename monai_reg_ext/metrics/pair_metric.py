# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric

__all__ = ["PairMetric"]


class PairMetric(CumulativeIterationMetric):
    """A metric that gives one number per registered pair; NaN means that the pair has no such number.

    Call it with batch-first tensors, or with lists of tensors without batch axis when the pairs differ in size. Every
    further keyword argument is batched in the same way. The buffer holds ``(pairs, 1)``; :py:meth:`aggregate` is
    Learn2Reg's mean over cases, and :py:func:`monai_reg_ext.metrics.aggregate_cases` of the buffer gives the others.
    """

    @abstractmethod
    def compute_pair(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Value of one pair, a tensor with one element, from ``y_pred``, ``y`` and the keywords without batch axis."""

    def aggregate(self) -> torch.Tensor:
        """Mean over the pairs that have a value; NaN when none has."""
        values = self.get_buffer()
        return torch.tensor(float("nan")) if values is None else values.nanmean()

    def _compute_tensor(self, y_pred: Any, y: Any = None, **others: Any) -> torch.Tensor:
        pairs = [
            self.compute_pair(
                y_pred[i], None if y is None else y[i], **{name: value[i] for name, value in others.items()}
            )
            for i in range(len(y_pred))
        ]
        return torch.stack([value.detach().reshape(1) for value in pairs])

    _compute_list = _compute_tensor
