# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["label_weights", "one_hot_labels"]


def one_hot_labels(label: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """Label maps ``(B, 1, I, J, K)`` as ``(B, len(labels), I, J, K)`` float32 channels.

    Raises:
        ValueError: when a label map holds another class.
    """
    classes = torch.as_tensor(labels, device=label.device).view(1, -1, 1, 1, 1)
    one_hot = (torch.as_tensor(label).as_subclass(torch.Tensor) == classes).float()
    if not one_hot.any(dim=1).all():
        unknown = sorted(set(label.unique().tolist()) - set(labels))
        raise ValueError(f"a label map holds the classes {unknown}, the loss knows {list(labels)}.")
    return one_hot


def label_weights(moving: torch.Tensor, fixed: torch.Tensor, exponent: float, background: float | None) -> torch.Tensor:
    """Weights of classes by their size, proportional to ``n^-exponent``, *n* the voxels in both images.

    Args:
        moving: ``(B, C, I, J, K)`` channels.
        fixed: the same.
        exponent: how strongly rare labels count.
        background: weight of class 0 in place of its own; ``None`` keeps that.

    Returns:
        ``(B, C)``, of mean 1 over the classes that occur, before the background has its own weight; 0 for the others.
    """
    counts = (moving + fixed).sum((2, 3, 4))
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -exponent, 0)
    weights = weights * (counts > 0).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    if background is not None:
        weights[:, 0] = background
    return weights
