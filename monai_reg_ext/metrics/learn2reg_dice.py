# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.metrics.label_maps import check_same_grid, common_labels
from monai_reg_ext.metrics.pair_metric import PairMetric

__all__ = ["Learn2RegDiceMetric", "compute_learn2reg_dice"]


def compute_learn2reg_dice(
    warped_label: torch.Tensor,
    fixed_label: torch.Tensor,
    moving_label: torch.Tensor,
    labels: Sequence[int] | None = None,
) -> torch.Tensor:
    """Dice per label as Learn2Reg's evaluation counts it.

    A label that is missing in the fixed image, or in the moving image before it was warped, is not counted at all
    (NaN); one that was warped out of the volume counts 0. Learn2Reg's value of the pair is the mean without the NaN.

    Args:
        warped_label: label map on the fixed grid, any shape; warped by nearest neighbour and zeros outside.
        fixed_label: label map of the shape of ``warped_label``.
        moving_label: the label map that was warped, on its own grid.
        labels: which labels; by default those that fixed and moving have in common, in ascending order.

    Returns:
        ``(len(labels),)`` float64 in ``0 .. 1``, or NaN.

    Raises:
        ValueError: when the warped and the fixed label map differ in shape.
    """
    check_same_grid(warped_label, fixed_label)
    if labels is None:
        labels = common_labels(fixed_label, moving_label)
    fixed_index, warped_index = (_index_of(labels, label_map) for label_map in (fixed_label, warped_label))
    size = len(labels) + 1
    joint = torch.bincount(fixed_index * size + warped_index, minlength=size * size).reshape(size, size).double()
    dice = 2 * joint.diagonal() / (joint.sum(0) + joint.sum(1))

    in_fixed = joint.sum(1) > 0
    in_moving = torch.bincount(_index_of(labels, moving_label), minlength=size) > 0
    return torch.where(in_fixed & in_moving, dice, torch.nan)[1:]


def _index_of(labels: Sequence[int], label_map: torch.Tensor) -> torch.Tensor:
    """Flat position of every voxel's label in ``labels``, counted from 1; 0 for every other label."""
    values = label_map.flatten()
    wanted, order = torch.tensor([*labels], device=values.device, dtype=torch.float64).sort()
    if len(wanted) == 0:
        return torch.zeros_like(values, dtype=torch.int64)
    nearest = torch.searchsorted(wanted, values.double()).clamp(max=len(wanted) - 1)
    return torch.where(wanted[nearest] == values, order[nearest] + 1, 0)


class Learn2RegDiceMetric(PairMetric):
    """Mean Dice of each pair (0 to 1) and of all pairs; see :py:func:`compute_learn2reg_dice`.

    ``metric(y_pred=warped_label, y=fixed_label, moving_label=moving_label)``

    Args:
        labels: which labels; by default those that fixed and moving have in common, pair by pair. As absent labels
            are not counted, a list that names more labels gives the same mean.
    """

    def __init__(self, labels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.labels = labels

    def compute_pair(self, y_pred: torch.Tensor, y: torch.Tensor, moving_label: torch.Tensor) -> torch.Tensor:
        return compute_learn2reg_dice(y_pred, y, moving_label, self.labels).nanmean()
