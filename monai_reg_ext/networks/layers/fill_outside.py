# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch

__all__ = ["FillOutside"]


class FillOutside:
    """Continue fields outwards: every cell outside a mask takes the value of the nearest cell inside.

    What a smoothing then takes from beyond the mask's border is what lies at the border, as beyond the faces of the
    grid. The nearest cells are found once, a call is one look-up.

    Args:
        mask: ``(B, 1, i, j, k)``, not 0 inside; distances count cells. ``None``, or an item without inside: fields
            stay as they are.
    """

    def __init__(self, mask: torch.Tensor | None) -> None:
        self._nearest = None if mask is None else _nearest_inside(mask)

    def __call__(self, field: torch.Tensor) -> torch.Tensor:
        """Field ``(B, C, i, j, k)`` with its outside replaced."""
        if self._nearest is None:
            return field
        flat = field.flatten(2)
        return flat.gather(2, self._nearest.expand_as(flat)).view(field.shape)

    def adjoint(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradient with respect to the field from that with respect to the continued one, same shape."""
        if self._nearest is None:
            return gradient
        flat = gradient.flatten(2)
        return torch.zeros_like(flat).scatter_add_(2, self._nearest.expand_as(flat), flat).view(gradient.shape)


def _nearest_inside(mask: torch.Tensor) -> torch.Tensor:
    """Flat number of the cell from which every cell takes its value, ``(B, 1, i * j * k)``."""
    numbers = [_nearest_of_item(item) for item in mask[:, 0].cpu().numpy() != 0]
    return torch.from_numpy(np.stack(numbers)).to(mask.device, torch.int64)[:, None]


def _nearest_of_item(inside: np.ndarray) -> np.ndarray:
    if not inside.any():
        return np.arange(inside.size)
    index = scipy.ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return np.ravel_multi_index(tuple(index), inside.shape).ravel()
