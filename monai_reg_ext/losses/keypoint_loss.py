# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from monai.data import MetaTensor
from torch.nn.modules.loss import _Loss

from monai_reg_ext.networks.layers.sample_points import sample_points

__all__ = ["KeypointLoss"]

_UNITS = "mm", "voxel"


class KeypointLoss(_Loss):
    r"""How far from the moving keypoints the fixed ones are taken, after every iteration.

    :math:`\sum_t w_t \, \text{mean}_n |A (f_n + u_t(f_n) - m_n)|` with the linear part *A* of the affine, so that a
    voxel counts as long as it is. The weights grow with the iteration and add up to 1.

    Args:
        unit: ``"mm"`` needs the affine of the fixed grid, ``"voxel"`` does not and takes voxels for even.
        squared: squared distances instead of distances.
        growing: ``False`` weighs all iterations alike.

    Shape:
        - pred: displacements at the fixed keypoints after every iteration ``(B, T, N, 3)`` in voxels, as
          :py:class:`monai_reg_ext.networks.nets.KeypointTraining` gives them; or a ddf ``(B, 3, I, J, K)``.
        - target: ``(B, 2, N, 3)``, moving keypoints, then the fixed ones, row by row the same places, in voxels of the
          fixed grid; for ``"mm"`` a MetaTensor with its affine. Rows that are not finite in either do not count, so
          that pairs with fewer points fit into a batch.
        - output: scalar.

    Raises:
        ValueError: for an unknown unit, shapes that do not fit, fixed keypoints outside the ddf, a pair without points.
        TypeError: when mm are asked of a target without affine.

    Source: Learn2Optimise, section 2 (deep keypoint supervision); Heinrich & Hansen, "Voxelmorph++", WBIR 2022.
    """

    def __init__(self, unit: str = "mm", squared: bool = False, growing: bool = True) -> None:
        super().__init__()
        if unit not in _UNITS:
            raise ValueError(f"unit must be one of {_UNITS}, got {unit!r}.")
        self.unit = unit
        self.squared = squared
        self.growing = growing

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        linear = self._linear(target)
        points = torch.as_tensor(target).as_subclass(torch.Tensor)
        if points.dim() != 4 or points.shape[1] != 2 or points.shape[3] != 3:
            raise ValueError(
                "KeypointLoss needs keypoints (B, 2, N, 3) in voxels, moving, then fixed, as many of each, got "
                f"{tuple(points.shape)}."
            )
        known = torch.isfinite(points).all(3).all(1)
        if not known.any(1).all():
            raise ValueError("KeypointLoss got a pair without a known keypoint. Leave it out of the training.")
        moving, fixed = torch.where(known[:, None, :, None], points, 0).to(pred.dtype).unbind(1)
        displacement = _at(pred, fixed, known)
        if displacement.shape[0] != len(fixed) or displacement.shape[2:] != fixed.shape[1:]:
            raise ValueError(
                f"KeypointLoss needs a displacement for every fixed keypoint, got {tuple(pred.shape)} for "
                f"{tuple(fixed.shape)}."
            )
        error = displacement + (fixed - moving).unsqueeze(1)
        if linear is not None:
            error = error @ linear.to(error).mT
        squares = error.square().sum(3)
        # at a perfect match a root has no slope
        distance = squares if self.squared else (squares + torch.finfo(squares.dtype).tiny).sqrt()
        known = known.unsqueeze(1).to(distance)
        return ((distance * known).sum(2) / known.sum(2)).mean(0) @ self._weights(distance)

    def _weights(self, distance: torch.Tensor) -> torch.Tensor:
        weights = torch.ones(distance.shape[1], device=distance.device, dtype=distance.dtype)
        weights = weights.cumsum(0) if self.growing else weights
        return weights / weights.sum()

    def _linear(self, target: torch.Tensor) -> torch.Tensor | None:
        """``(B, 1, 3, 3)`` from voxels to mm."""
        if self.unit == "voxel":
            return None
        if not isinstance(target, MetaTensor):
            raise TypeError(
                "KeypointLoss in mm needs keypoints as a MetaTensor with the affine of the fixed grid, got "
                f"{type(target).__name__}. Wrap them, MetaTensor(points, affine=fixed.affine), or set unit='voxel'."
            )
        return target.affine.view(-1, 1, 4, 4)[..., :3, :3]


def _at(pred: torch.Tensor, fixed: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """``(B, T, N, 3)`` displacement at the fixed points."""
    if pred.dim() != 5:
        return pred
    size = torch.tensor(pred.shape[2:]).to(fixed)
    outside = known & ((fixed < -0.5) | (fixed > size - 0.5)).any(2)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {int(known.sum())} fixed keypoints lie outside the field "
            f"{tuple(pred.shape[2:])}. "
            "They must count voxels of the fixed grid, not mm; leave out those that it does not show."
        )
    return sample_points(pred, fixed).unsqueeze(1)
