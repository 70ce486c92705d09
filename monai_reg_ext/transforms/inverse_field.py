# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ImageMetaKey

from monai_reg_ext.transforms.spatial_displacement import FoldedFieldError, SpatialDisplacement

__all__ = ["InverseFieldD", "InverseFieldDict", "InverseFieldd"]

logger = logging.getLogger(__name__)

METHODS = ("none", "numeric", "symmetric")


class InverseFieldd(Transform):
    """Add the field of the opposite direction, which brings the fixed image onto the moving one's own grid.

    ``pred_inverse`` ``(3, *moving_size)`` has the moving affine and counts voxels of the moving grid:
    ``warped_fixed(q) = fixed(pred_inverse(q))`` in physical space. It needs ``pred``, the total displacement on the
    fixed grid, and the image ``moving``.

    A field that cannot be inverted, because it folds, leaves the item without ``pred_inverse``; a warning in the log
    says where it folds.

    Args:
        method: ``"none"`` adds nothing. ``"numeric"`` inverts ``pred``, and leaves the mean of what it misses in
            ``inverse_residual_voxel`` (voxels of the fixed grid). ``"symmetric"`` takes the direction that the network
            found itself, ``pred_backward`` of :py:class:`SplitDirectionsd` on the grid of ``fixed_working``, behind the
            inverse of ``initial``, both as :py:class:`ResampleToFixedd` writes them.

    Raises:
        ValueError: for another method, and with ``"symmetric"`` when the network gave one direction only.
    """

    def __init__(self, method: str = "none") -> None:
        if method not in METHODS:
            raise ValueError(f"inverse must be one of {METHODS}, got {method!r}.")
        self.method = method

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        backward = out.pop("pred_backward", None)
        if self.method == "none":
            return out
        moving = out["moving"]
        try:
            if self.method == "numeric":
                inverse, residual = _numeric(out["pred"], moving)
                if math.isfinite(residual):
                    out["inverse_residual_voxel"] = residual
            else:
                inverse = _symmetric(backward, out["fixed_working"].affine, out["initial"], moving)
        except FoldedFieldError as error:
            logger.warning("%s: no inverse field: %s", out.get("pair", "a pair"), error)
            return out
        meta = {ImageMetaKey.FILENAME_OR_OBJ: moving.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")}
        out["pred_inverse"] = MetaTensor(inverse.ddf, affine=moving.affine, meta=meta)
        return out


def _numeric(pred: MetaTensor, moving: MetaTensor) -> tuple[SpatialDisplacement, float]:
    return SpatialDisplacement.from_metatensor(pred).inverse(moving.affine, moving.shape[1:])


def _symmetric(
    backward: torch.Tensor | None, affine: torch.Tensor, initial: torch.Tensor, moving: MetaTensor
) -> SpatialDisplacement:
    if backward is None:
        raise ValueError(
            "inverse='symmetric' needs both directions from the network, (6, i, j, k), got one. Set "
            "network_def#symmetric to true, or use inverse='numeric'."
        )
    size = moving.shape[1:]
    to_fixed = _inverse_of_initial(initial, moving)
    return SpatialDisplacement.from_chain([to_fixed, SpatialDisplacement(backward, affine)], moving.affine, size)


def _inverse_of_initial(initial: torch.Tensor, moving: MetaTensor) -> torch.Tensor | SpatialDisplacement:
    if initial.ndim == 2:
        return torch.linalg.inv(torch.as_tensor(initial, dtype=torch.float64, device="cpu"))
    return SpatialDisplacement.from_metatensor(initial).inverse(moving.affine, moving.shape[1:])[0]


InverseFieldD = InverseFieldDict = InverseFieldd
