# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.blocks.heatmap_head import HeatmapHead
from monai_reg_ext.networks.blocks.skip_unet import SkipUNet
from monai_reg_ext.networks.layers.cells_inside import cells_inside
from monai_reg_ext.networks.layers.keypoint_distribution import KeypointDistribution
from monai_reg_ext.networks.layers.points_in_mask import points_in_mask
from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.networks.layers.thin_plate_spline import thin_plate_field

__all__ = ["VoxelMorphPlusPlusEstimator"]

# points whose heatmaps are made at once where no gradient needs them
_POINTS_AT_ONCE = 128


class VoxelMorphPlusPlusEstimator(nn.Module):
    """VoxelMorph++: heatmaps of displacements at keypoints, and the smooth field through what they expect.

    A :py:class:`SkipUNet` sees both sides at once and gives 64 features on a grid of half as many cells; a
    :py:class:`HeatmapHead` reads the probabilities of all displacements off those of a point; the spline of
    :py:func:`thin_plate_field` goes through the expected displacements of points that are spread over the fixed mask.
    In the published size 1,364,305 weights. It learns at given points, see :py:meth:`at_points` and
    :py:class:`monai_reg_ext.networks.nets.KeypointTraining`; an :py:class:`AdamRefiner` behind it is the instance
    optimisation of the paper.

    Args:
        channels: of the features on each side; 1 for intensities.
        grid_spacing: voxels per cell of what the network sees, one number or one per axis.
        labels: displacements along each axis.
        fraction: largest displacement along each axis as a fraction of half the image; the outermost displacements
            are half a step less, as the centres of so many bins.
        reach: the same in voxels, takes the place of ``fraction``; for images of different sizes.
        points: how many points the field goes through.
        smoothing: of the spline, for each of its points: with twice as many the field is as smooth.
        stride: at most so many cells from one evaluation of the spline to the next.
        compat: the reference's spline: kernel ``"plate"``, smoothing 0.1 whatever the number of points; and zeros
            beyond the border of the network's grid.

    Shape:
        - fixed, moving: ``(B, channels, i, j, k)`` on the grid of :py:meth:`spacing`, an axis of more than 16 cells.
        - fixed_mask, moving_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1. What lies outside is
          0 to the network, and no point is outside the fixed one.
        - output: coarse_ddf ``(B, 3, i, j, k)`` in cells.

    Raises:
        ValueError: when the fixed mask is so thin that all points lie on a plane, or the grid is too small.

    Source: Heinrich & Hansen, "Voxelmorph++: going beyond the cranial vault with keypoint supervision and
    multi-channel instance optimisation", WBIR 2022.
    """

    def __init__(
        self,
        channels: int = 1,
        grid_spacing: int | Sequence[int] = 2,
        labels: int = 11,
        fraction: float | Sequence[float] = 0.3,
        reach: float | Sequence[float] | None = None,
        points: int = 2048,
        smoothing: float = 1e-4,
        stride: int = 2,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.grid_spacing = ensure_tuple_rep(grid_spacing, 3)
        self.labels = labels
        self.fraction = ensure_tuple_rep(fraction, 3)
        self.reach = None if reach is None else ensure_tuple_rep(reach, 3)
        self.points = points
        self.smoothing = 0.1 if compat else smoothing * points
        self.stride = stride
        self.compat = compat
        self.network = SkipUNet(
            2 * channels,
            encoder=(32, 48, 48, 64),
            decoder=(64, 48, 48, 48),
            remaining=(48, 32, 64),
            half=True,
            pool="max",
            upsampling="nearest",
            padding="constant" if compat else "replicate",
        )
        self.head = HeatmapHead(64, labels)

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        return self.grid_spacing

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inside = torch.ones_like(fixed[:, :1]) if fixed_mask is None else fixed_mask
        points = points_in_mask(cells_inside(inside) > 0, self.points)
        displacement = self.at_points(fixed, moving, points, fixed_mask, moving_mask).mean()
        kernel = "plate" if self.compat else "linear"
        return thin_plate_field(points, displacement, fixed.shape[2:], self.smoothing, self.stride, kernel)

    def at_points(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        points: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> KeypointDistribution:
        """Probabilities of all displacements at given points of the fixed image, in cells.

        Args:
            fixed: see the class.
            moving: see the class.
            points: ``(B, N, 3)`` in cells.
            fixed_mask: see the class.
            moving_mask: see the class.
        """
        if fixed_mask is not None:
            fixed = fixed * fixed_mask
        if moving_mask is not None:
            moving = moving * moving_mask
        features = self.network(torch.cat([fixed, moving], 1))
        # a cell of the features is that of two cells along each axis
        of_points = sample_points(features.float(), (points - 0.5) / 2).flatten(0, 1)
        at_once = len(of_points) if torch.is_grad_enabled() else _POINTS_AT_ONCE
        logits = torch.cat([self.head(some) for some in of_points.split(at_once)]).flatten(1).float()
        probabilities = logits.softmax(1).unflatten(0, points.shape[:2])
        return KeypointDistribution(probabilities, points, self._displacements(fixed))

    def _displacements(self, fixed: torch.Tensor) -> torch.Tensor:
        """``(labels ** 3, 3)`` in cells."""
        reach = [part * cells / 2 for part, cells in zip(self.fraction, fixed.shape[2:], strict=True)]
        if self.reach is not None:
            reach = [far / step for far, step in zip(self.reach, self.grid_spacing, strict=True)]
        bins = (2 * torch.arange(self.labels, device=fixed.device) + 1 - self.labels) / self.labels
        return torch.cartesian_prod(*[far * bins for far in reach])
