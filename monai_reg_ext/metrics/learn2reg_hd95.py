# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import OptionalImportError, optional_import
from scipy.ndimage import find_objects

from monai_reg_ext.metrics.label_maps import check_same_grid, common_labels
from monai_reg_ext.metrics.pair_metric import PairMetric

NEEDS_SURFACE_DISTANCE = "HD95 needs the package surface-distance. Install it: pip install surface-distance."
surface_distance, has_surface_distance = optional_import("surface_distance", descriptor=NEEDS_SURFACE_DISTANCE)

__all__ = ["Learn2RegHD95Metric", "compute_learn2reg_hd95"]


def compute_learn2reg_hd95(
    warped_label: torch.Tensor,
    fixed_label: torch.Tensor,
    moving_label: torch.Tensor,
    labels: Sequence[int] | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> torch.Tensor:
    """95 % Hausdorff distance per label as Learn2Reg's evaluation takes it.

    Both surfaces are cut into surface elements; the distance is the one that 95 % of the surface's area stay below, in
    the worse of the two directions. A label that is missing in the fixed image, or in the moving image before it was
    warped, is not counted (NaN); one that was warped out of the volume is infinitely far away.

    Args:
        warped_label: label map on the fixed grid, ``(1, I, J, K)`` or ``(I, J, K)``.
        fixed_label: label map of the shape of ``warped_label``.
        moving_label: the label map that was warped, on its own grid.
        labels: which labels, above 0; by default those that fixed and moving have in common, in ascending order.
        spacing: of the fixed grid in mm. The default counts voxels, as Learn2Reg does on every grid.

    Returns:
        ``(len(labels),)`` float64.

    Raises:
        ValueError: when the warped and the fixed label map differ in shape.
        OptionalImportError: without the package ``surface-distance``.
    """
    check_same_grid(warped_label, fixed_label)
    if labels is None:
        labels = common_labels(fixed_label, moving_label)
    fixed, warped = (_to_volume(label_map) for label_map in (fixed_label, warped_label))
    highest = max(labels, default=0)
    fixed_boxes, warped_boxes = (find_objects(volume, highest) for volume in (fixed, warped))
    in_moving = set(moving_label.unique().tolist())

    distances = []
    for label in labels:
        fixed_box, warped_box = fixed_boxes[label - 1], warped_boxes[label - 1]
        if fixed_box is None or label not in in_moving:
            distances.append(np.nan)
        elif warped_box is None:
            distances.append(np.inf)
        else:
            box = _union(fixed_box, warped_box)
            distances.append(_robust_hausdorff(fixed[box] == label, warped[box] == label, spacing))
    return torch.tensor(distances, dtype=torch.float64)


def _to_volume(label_map: torch.Tensor) -> np.ndarray:
    return label_map.reshape(label_map.shape[-3:]).cpu().numpy().astype(np.int32)


def _union(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _robust_hausdorff(fixed: np.ndarray, warped: np.ndarray, spacing: Sequence[float]) -> float:
    distances = surface_distance.compute_surface_distances(fixed, warped, spacing)
    return float(surface_distance.compute_robust_hausdorff(distances, 95.0))


class Learn2RegHD95Metric(PairMetric):
    """Mean HD95 over the labels of each pair, and over all pairs; see :py:func:`compute_learn2reg_hd95`.

    ``metric(y_pred=warped_label, y=fixed_label, moving_label=moving_label)``

    Args:
        labels: which labels; by default those that fixed and moving have in common, pair by pair.
        spacing: of the fixed grid in mm; the default counts voxels.

    Raises:
        OptionalImportError: without the package ``surface-distance``.
    """

    def __init__(self, labels: Sequence[int] | None = None, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        if not has_surface_distance:
            raise OptionalImportError(NEEDS_SURFACE_DISTANCE)
        self.labels = labels
        self.spacing = spacing

    def compute_pair(self, y_pred: torch.Tensor, y: torch.Tensor, moving_label: torch.Tensor) -> torch.Tensor:
        return compute_learn2reg_hd95(y_pred, y, moving_label, self.labels, self.spacing).nanmean()
