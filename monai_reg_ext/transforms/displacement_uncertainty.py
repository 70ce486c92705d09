# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ImageMetaKey, convert_to_tensor

from monai_reg_ext.networks.layers.symmetric_matrix import COLUMNS, ROWS
from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.conventions import grid_voxels, voxel_to_voxel

__all__ = [
    "DisplacementUncertainty",
    "DisplacementUncertaintyD",
    "DisplacementUncertaintyDict",
    "DisplacementUncertaintyd",
]


class DisplacementUncertainty(Transform):
    r"""Standard deviation of a displacement in mm on the fixed grid, from its covariance on the working grid.

    With the linear part *A* of the working grid's affine and the covariance *S* in voxels squared it is
    :math:`\sqrt{\operatorname{trace}(A S A^T)}`: the root of the expected squared length of the error. Errors without a
    preferred direction have :math:`1/\sqrt3` of it along each axis.

    An initial alignment is taken for exact, and for one that stretches nothing.

    Raises:
        ValueError: when the covariance is not one on the working grid, or not finite.
    """

    def __call__(self, covariance: torch.Tensor, working: MetaTensor, fixed: MetaTensor) -> MetaTensor:
        """Convert.

        Args:
            covariance: ``(6, i, j, k)`` in voxels squared of the working grid, entries 00, 01, 02, 11, 12, 22.
            working: image on the working grid.
            fixed: image on the fixed grid ``(1, I, J, K)``.

        Returns:
            ``(1, I, J, K)`` float32 in mm, with the fixed affine. Between voxels variances are interpolated linearly,
            beyond the working grid its border goes on.
        """
        if tuple(covariance.shape) != (6, *working.shape[1:]):
            raise ValueError(
                f"a covariance on the working grid is {(6, *working.shape[1:])}, got {tuple(covariance.shape)}."
            )
        covariance = convert_to_tensor(covariance, dtype=torch.float32, track_meta=False)
        if not torch.isfinite(covariance).all():
            raise ValueError("the covariance has NaN or infinite voxels: the registration itself failed.")
        variance = _mean_squared_length(covariance, working.affine)
        positions = grid_voxels(fixed.shape[1:], voxel_to_voxel(fixed.affine, working.affine), device=variance.device)
        on_fixed = sample(variance[None], positions[None])[0].clamp(min=0).sqrt()
        meta = {ImageMetaKey.FILENAME_OR_OBJ: fixed.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")}
        return MetaTensor(on_fixed, affine=fixed.affine, meta=meta)


class DisplacementUncertaintyd(Transform):
    """Dictionary version of :py:class:`DisplacementUncertainty`; an item without covariance passes unchanged.

    It takes ``pred_covariance`` of :py:class:`SplitDirectionsd` away and adds ``uncertainty``. It needs the images
    ``fixed`` and ``fixed_working``, see :py:class:`ResampleToFixedd`.
    """

    def __init__(self) -> None:
        self.converter = DisplacementUncertainty()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        covariance = out.pop("pred_covariance", None)
        if covariance is not None:
            out["uncertainty"] = self.converter(covariance, out["fixed_working"], out["fixed"])
        return out


def _mean_squared_length(covariance: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """``trace(A S A^T)`` of covariances ``(6, i, j, k)``, ``(1, i, j, k)``."""
    linear = affine[:3, :3].to(torch.float64)
    metric = linear.T @ linear
    weights = [metric[row, column] * (1 if row == column else 2) for row, column in zip(ROWS, COLUMNS, strict=True)]
    return torch.tensordot(torch.stack(weights).to(covariance), covariance, dims=1)[None]


DisplacementUncertaintyD = DisplacementUncertaintyDict = DisplacementUncertaintyd
