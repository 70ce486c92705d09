# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.layers.cells_inside import cells_inside
from monai_reg_ext.networks.layers.coupled_convex import COUPLINGS, coupled_convex
from monai_reg_ext.networks.layers.inverse_consistency import make_inverse_consistent
from monai_reg_ext.networks.layers.mask_channel import add_mask_channel
from monai_reg_ext.networks.layers.residual_covariance import LABEL_VARIANCE, residual_covariance
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume

__all__ = ["CoupledConvexEstimator"]

# what the smoothing leaves of a label's variance, as measured where residual_covariance was
_ROUNDING_VARIANCE = LABEL_VARIANCE / 3
_MEASURED_WIDTHS = (3, 3)


class CoupledConvexEstimator(nn.Module):
    """Discrete search over a dense window of displacements, regularised by coupled convex optimisation.

    Args:
        grid_spacing: voxels per cell of the control grid, one number or one per axis. ``None`` chooses it from the
            size: about 35 cells along an axis of average length, between 2 and 6 voxels.
        half_width: largest displacement along each axis in cells; ``half_width * grid_spacing`` voxels are captured.
        inverse_consistency: rounds that bring the field and its opposite together; 0 searches in one direction only.
        couplings: weights that tie the search to the smoothed field. Scaling the features by *s* needs them scaled by
            *s* squared.
        sharpness: ``None`` takes the displacement of least cost, a number the expected one, through which features
            can be learned, see :py:func:`coupled_convex`.
        memory: bytes for the cost volume of all directions, by default 1 GiB; costs beyond are computed for every
            coupling anew, in little memory. See :py:class:`SSDCostVolume`.
        compat: convexAdam's borders, sampling and ties.
        mask_penalty: what it costs, with masks, to go from inside the one to outside the other; on the scale of the
            features' squared difference. The default is what leaving the grid costs with MIND, while two places of no
            relation differ by 1 to 2.
        smooth_widths: box filters over the costs of every displacement. Fine grids want fewer: two of 3 cells blur
            what a second search on the voxel grid has to tell, none leaves it to noise.

    Shape:
        - fixed, moving: ``(B, F, i, j, k)`` features on one control grid: means over cells of :py:meth:`spacing`.
        - fixed_mask, moving_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1. Cells of which it is
          less than half are not matched; where smoothing would reach them, the mask's border goes on.
        - output: coarse_ddf ``(B, 3, i, j, k)`` in cells.

    Raises:
        ValueError: when the search window is larger than the control grid.

    Source: ConvexAdam, convex stage.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] | None = None,
        half_width: int | Sequence[int] = 4,
        inverse_consistency: int = 15,
        couplings: Sequence[float] = COUPLINGS,
        sharpness: float | None = None,
        memory: int | None = None,
        compat: bool = False,
        mask_penalty: float = 4.0,
        smooth_widths: Sequence[int] = (3, 3),
    ) -> None:
        super().__init__()
        self.grid_spacing = None if grid_spacing is None else ensure_tuple_rep(grid_spacing, 3)
        self.half_width = ensure_tuple_rep(half_width, 3)
        self.inverse_consistency = inverse_consistency
        self.couplings = tuple(couplings)
        self.sharpness = sharpness
        self.memory = memory
        self.compat = compat
        self.mask_penalty = mask_penalty
        self.smooth_widths = tuple(smooth_widths)

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        if self.grid_spacing is not None:
            return self.grid_spacing
        length = (size[0] * size[1] * size[2]) ** (1 / 3)
        return (min(6, max(2, round(length / 35))),) * 3

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.inverse_consistency > 0:
            return self.both(fixed, moving, fixed_mask, moving_mask)[0]
        self._check_window(fixed.shape[2:])
        fixed, moving = add_mask_channel(fixed, moving, fixed_mask, moving_mask, self.mask_penalty)
        return self._search(fixed, moving, fixed_mask)

    def both(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The coarse field and that of the opposite direction, which registers fixed to moving."""
        self._check_window(fixed.shape[2:])
        fixed, moving = add_mask_channel(fixed, moving, fixed_mask, moving_mask, self.mask_penalty)
        forward, backward = self._search_both(fixed, moving, fixed_mask, moving_mask)
        return make_inverse_consistent(forward, backward, self.inverse_consistency, self.compat)

    def covariance(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        refined: bool = True,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """How far a registration may be off, from another look at its result, see :py:func:`residual_covariance`.

        The errors of any method can be judged so, not only those of this search, as far as they are the features'
        fault: displacements beyond its window go unnoticed.

        Args:
            fixed: ``(B, F, i, j, k)`` features.
            moving: the same of the **registered** moving image.
            refined: whether a refiner has worked on the field. If not, the search's counting in whole cells adds to the
                errors, that of expected displacements no less.
            fixed_mask: ``(B, 1, i, j, k)``, see the class.
            moving_mask: the same of the registered moving image.

        Returns:
            ``(B, 6, i, j, k)`` covariance of the displacement in cells squared, entries 00, 01, 02, 11, 12, 22. No
            gradients.
        """
        self._check_window(fixed.shape[2:])
        fixed, moving = add_mask_channel(fixed, moving, fixed_mask, moving_mask, self.mask_penalty)
        masks = [None] * len(fixed) if fixed_mask is None else fixed_mask.split(1)
        sides = zip(fixed.split(1), moving.split(1), masks, strict=True)
        volumes = (self._volume(*side, smooth_widths=_MEASURED_WIDTHS) for side in sides)
        covariance = torch.cat([residual_covariance(volume, volume.mask) for volume in volumes])
        if not refined:
            covariance[:, [0, 3, 5]] += _ROUNDING_VARIANCE
        return covariance

    def _search_both(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None,
        moving_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.compat:
            # the negated labels of a symmetric volume would send the backward ties to the highest label
            return self._search(fixed, moving, fixed_mask), self._search(moving, fixed, moving_mask)
        forward, negated_backward = self._search(fixed, moving, fixed_mask, moving_mask, symmetric=True).chunk(2)
        return forward, -negated_backward

    def _search(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None,
        moving_mask: torch.Tensor | None = None,
        symmetric: bool = False,
    ) -> torch.Tensor:
        volume = self._volume(fixed, moving, fixed_mask, moving_mask, symmetric)
        return coupled_convex(volume, self.couplings, self.sharpness, self.compat, volume.mask)

    def _volume(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None,
        moving_mask: torch.Tensor | None = None,
        symmetric: bool = False,
        smooth_widths: Sequence[int] | None = None,
    ) -> SSDCostVolume:
        return SSDCostVolume(
            fixed,
            moving,
            self.half_width,
            self.smooth_widths if smooth_widths is None else smooth_widths,
            compat=self.compat,
            symmetric=symmetric,
            memory=self.memory,
            fixed_mask=None if fixed_mask is None else cells_inside(fixed_mask),
            moving_mask=None if moving_mask is None else cells_inside(moving_mask),
        )

    def _check_window(self, cells: Sequence[int]) -> None:
        if any(reach >= extent for reach, extent in zip(self.half_width, cells, strict=True)):
            raise ValueError(
                f"half_width={self.half_width} reaches beyond a control grid of {tuple(cells)} cells. Choose a "
                "half_width below the cells along each axis, a smaller grid_spacing, or resample the images to smaller "
                "voxels."
            )
