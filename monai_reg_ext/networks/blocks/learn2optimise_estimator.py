# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_reg_ext.networks.blocks.skip_unet import SkipUNet
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.cells_inside import cells_inside
from monai_reg_ext.networks.layers.mask_channel import add_mask_channel
from monai_reg_ext.networks.layers.pool_to_grid import grid_size, pool_to_grid
from monai_reg_ext.networks.layers.sampled_cost import sampled_cost
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import identity_grid

__all__ = ["Learn2OptimiseEstimator"]

UPDATES = "residual", "absolute"
# the published offset, and the channels of memory, in halves of the grid
_REFERENCE_OFFSET, _COMPONENTS, _CORNERS = 0.015, 3, 8


class Learn2OptimiseEstimator(nn.Module):
    r"""A network in the place of an optimiser: it looks around every displacement and says where to go next.

    One small U-Net, :py:class:`SkipUNet`, is applied again and again. It sees the displacement so far, eight
    displacements around it, the mean squared difference of the features at these eight, from which a slope could be
    taken, and hidden channels of its own, its momentum; it gives the change of the displacement and the next hidden
    channels. In its published size it has 254,493 weights.

    Estimator and refiner in one: as a refiner it starts from the field that it is given. It learns by a loss on the
    field after every iteration, see :py:class:`monai_reg_ext.networks.nets.KeypointTraining`. Gradients go through all
    iterations, along displacements and hidden channels. Each iteration is computed again for them: a training step
    needs the memory of one iteration, and 16 values per cell for each of the others.

    Args:
        grid_spacing: voxels per cell, one number or one per axis.
        iterations: how often the network is applied; may be changed at any time.
        levels: so many cells along each axis become one at first, later fewer: the same weights go from coarse to fine,
            and displacements that are far for the finest cells are near for the coarsest. Iterations are shared among
            the levels, one more for the last ones where they do not come out even. Levels too coarse for the network
            are left out. Published is a single one.
        offset: of the eight displacements along each axis, in cells, one number or one per axis.
        scale: how many cells are 1 to the network, one number or one per axis.
        hidden: number of hidden channels.
        update: ``"residual"``: the network gives changes, at first none. ``"absolute"`` as the reference: it gives the
            whole displacement anew in every iteration, at first any of some cells.
        step: the largest change along each axis in one iteration, in cells; of ``"residual"`` only.
        smooth_widths: box filters over what the network gives.
        differentiable: gradients also go through the costs, to displacements and features. By default costs are
            observed: features in front are not trained.
        training_iterations: how often the network is applied in training mode; by default as often as else.
        truncation: gradients go back through so many iterations at a time, of one level; by default through all, as the
            reference, where they are ten to a hundred times as long.
        conditioning: factors with which the network sees the mean of the eight costs, the seven contrasts between them,
            and its hidden channels. Costs differ by some hundredths, and a network that sees each of the eight as it is
            learns to ignore them at first; what it can learn is the same. None shows them as the reference does.
        mask_penalty: what it costs, with masks, to go from inside the one to outside the other; on the scale of the
            features' squared difference.
        bfloat16: without gradients, the network computes in bfloat16; displacements and costs stay as they are. On a
            CPU that has it this takes half the time. For training: :py:class:`monai_reg_ext.engines.AutocastInferer`.
        compat: the reference's: ``"absolute"``, no ``conditioning``, halves of the grid (between the centres of the
            outermost cells) for ``scale``, 0.015 of them for ``offset``, zeros outside the features, the network's
            grid and the filters'.

    Shape:
        - fixed, moving: ``(B, F, i, j, k)`` features on the grid of :py:meth:`spacing`, an axis of more than 16 cells.
        - coarse_ddf, output: ``(B, 3, i, j, k)`` in cells, float32, or float64 with float64 features.
        - fixed_mask, moving_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1. Cells of which it is
          less than half of the fixed one cost nothing.

    Raises:
        ValueError: for an unknown update, a truncation below 1, levels that are no whole numbers from 1 on, features
            that are not on one grid, a grid too small.

    Source: "Learning iterative optimisation for deformable image registration with recurrent convolutional networks"
    (Learn2Optimise), section 2.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] = 2,
        iterations: int = 8,
        levels: Sequence[int] = (1,),
        offset: float | Sequence[float] = 0.75,
        scale: float | Sequence[float] = 50.0,
        hidden: int = 10,
        update: str = "residual",
        step: float = 4.0,
        smooth_widths: Sequence[int] = (3, 3),
        differentiable: bool = False,
        training_iterations: int | None = None,
        truncation: int | None = None,
        conditioning: Sequence[float] | None = (30.0, 100.0, 0.125),
        mask_penalty: float = 4.0,
        bfloat16: bool = False,
        compat: bool = False,
    ) -> None:
        super().__init__()
        if update not in UPDATES:
            raise ValueError(f"update must be one of {UPDATES}, got {update!r}.")
        if truncation is not None and truncation < 1:
            raise ValueError(f"truncation must be 1 iteration or more, or None, got {truncation}.")
        if not levels or any(level != int(level) or level < 1 for level in levels):
            raise ValueError(f"levels must be whole numbers of cells from 1 on, at least one, got {tuple(levels)}.")
        self.grid_spacing = ensure_tuple_rep(grid_spacing, 3)
        self.iterations = iterations
        self.levels = tuple(levels)
        self.offset = ensure_tuple_rep(offset, 3)
        self.scale = ensure_tuple_rep(scale, 3)
        self.hidden = hidden
        self.update = "absolute" if compat else update
        self.step = step
        self.smooth_widths = tuple(smooth_widths)
        self.differentiable = differentiable
        self.training_iterations = training_iterations
        self.truncation = truncation
        self.conditioning = None if compat else conditioning
        self.mask_penalty = mask_penalty
        self.bfloat16 = bfloat16
        self.compat = compat
        self.network = self._network()

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        return self.grid_spacing

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        coarse_ddf: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        *_, last = self.fields(fixed, moving, coarse_ddf, fixed_mask, moving_mask)
        return last

    def fields(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        coarse_ddf: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """The field ``(B, 3, i, j, k)`` in cells: at the start, after every iteration.

        Args:
            fixed: see the class.
            moving: see the class.
            coarse_ddf: see the class; no displacement by default.
            fixed_mask: see the class.
            moving_mask: see the class.
        """
        if fixed.shape != moving.shape:
            raise ValueError(
                f"Learn2OptimiseEstimator needs fixed and moving features on one grid, got {tuple(fixed.shape)} and "
                f"{tuple(moving.shape)}."
            )
        dtype = torch.promote_types(fixed.dtype, torch.float32)
        size = fixed.shape[2:]
        field = fixed.new_zeros((len(fixed), _COMPONENTS, *size), dtype=dtype) if coarse_ddf is None else coarse_ddf
        yield (found := field.to(dtype))
        for level, iterations in self._shares(size):
            spacing, start = (level,) * 3, found
            sides = [
                None if side is None else pool_to_grid(side, spacing)
                for side in (fixed, moving, fixed_mask, moving_mask)
            ]
            for change in self._changes(*sides, downsample_ddf(start, spacing), iterations):
                yield (found := start + (change if level == 1 else upsample_ddf(change, spacing, size)))
            if self.truncation is not None:
                found = found.detach()

    def _shares(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Each level and its number of iterations."""
        chosen = self.training_iterations if self.training else None
        iterations = self.iterations if chosen is None else chosen
        levels = [level for level in self.levels[:-1] if self.network.works_on(grid_size(size, (level,) * 3))]
        levels.append(self.levels[-1])
        return [(level, (iterations + number) // len(levels)) for number, level in enumerate(levels)]

    def _changes(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None,
        moving_mask: torch.Tensor | None,
        start: torch.Tensor,
        iterations: int,
    ) -> Iterator[torch.Tensor]:
        """What is to be added to the start after each iteration on one grid."""
        weight = 1 / fixed.shape[1] if fixed_mask is None else cells_inside(fixed_mask) / fixed.shape[1]
        sides = add_mask_channel(fixed, moving, fixed_mask, moving_mask, self.mask_penalty)
        # the neighbours of a sample lie in eight runs of memory
        sides = [side.to(start.dtype).contiguous(memory_format=torch.channels_last_3d) for side in sides]
        change = torch.zeros_like(start)
        hidden = change.new_zeros((len(fixed), self.hidden, *fixed.shape[2:]))
        for number in range(iterations):
            if self.truncation is not None and number % self.truncation == 0:
                change, hidden = change.detach(), hidden.detach()
            state = *sides, weight, start, change, hidden
            change, hidden = (
                checkpoint(self._iterate, *state, use_reentrant=False, preserve_rng_state=False)
                if torch.is_grad_enabled()
                else self._iterate(*state)
            )
            yield change

    def _iterate(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        weight: torch.Tensor | float,
        start: torch.Tensor,
        change: torch.Tensor,
        hidden: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change from the start, and hidden channels, after one more iteration."""
        scale = self._per_axis(self._scale(change), change)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            places = identity_grid(change.shape[2:], change) + start + change
            cost = weight * sampled_cost(fixed, moving, places, self._corners(scale), self._padding)
        # to the network, as in the reference, axis 2 is the first one
        seen = [(change / scale).flip(1), torch.ones_like(change[:, :1]), hidden, cost]
        given = self._asked(torch.cat(seen, 1)).to(change.dtype).tanh()
        found = box_filter(given[:, :_COMPONENTS].flip(1), self.smooth_widths, self.compat)
        change = found * scale if self.update == "absolute" else change + self.step * found
        return change, given[:, _COMPONENTS:]

    def _asked(self, seen: torch.Tensor) -> torch.Tensor:
        if not self.bfloat16 or torch.is_grad_enabled():
            return self.network(seen)
        with torch.autocast(seen.device.type, dtype=torch.bfloat16):
            return self.network(seen)

    @property
    def _padding(self) -> str:
        return "zeros" if self.compat else "border"

    def _scale(self, field: torch.Tensor) -> tuple[float, ...]:
        return tuple((extent - 1) / 2 for extent in field.shape[2:]) if self.compat else self.scale

    def _corners(self, scale: torch.Tensor) -> torch.Tensor:
        """``(8, 3)`` displacements to look at, in cells; axis 2 changes fastest."""
        signs = torch.tensor([-1.0, 1.0], device=scale.device)
        offset = _REFERENCE_OFFSET * scale.flatten() if self.compat else self._per_axis(self.offset, scale).flatten()
        return torch.cartesian_prod(signs, signs, signs) * offset

    def _network(self) -> SkipUNet:
        scale = torch.ones(1, _COMPONENTS) if self.compat else torch.tensor(self.scale)
        corners = self._corners(scale) / scale
        mixture = _mixture(corners, self.hidden, self.conditioning)
        padding = "constant" if self.compat else "replicate"
        network = SkipUNet(len(mixture), _COMPONENTS + self.hidden, padding=padding)
        first = network.encoder[0][0]
        first.conv = MixedConvolution(mixture, first.conv.out_channels)
        if self.update == "residual":
            last = network.remaining[-1][-1]
            nn.init.zeros_(last.weight[:_COMPONENTS])
            nn.init.zeros_(last.bias[:_COMPONENTS])
        return network

    @staticmethod
    def _per_axis(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)


class MixedConvolution(nn.Conv3d):
    """A convolution of channels that are sums of fewer given ones: only the latter are ever laid out.

    Args:
        mixture: ``(in_channels, given)``, each input channel in terms of the given ones.
        out_channels: of the result.

    Shape:
        - input: ``(B, given, i, j, k)``.
        - output: ``(B, out_channels, i, j, k)``: a convolution of 3x3x3, with zeros beyond the border, of all channels.
    """

    def __init__(self, mixture: torch.Tensor, out_channels: int) -> None:
        super().__init__(len(mixture), out_channels, kernel_size=3, padding=1)
        self.register_buffer("mixture", mixture, persistent=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        weight = torch.einsum("ocijk,cg->ogijk", self.weight, self.mixture)
        return F.conv3d(given, weight, self.bias, padding=1)


def _mixture(corners: torch.Tensor, hidden: int, conditioning: Sequence[float] | None) -> torch.Tensor:
    """The network's 45 channels in terms of the 22 that differ.

    The former: displacement, coordinates of its corners, hidden channels, costs. The latter have a one in the place of
    the coordinates, which are displacement plus corner.
    """
    displacement = torch.eye(_COMPONENTS)
    coordinates = torch.cat([displacement.repeat_interleave(_CORNERS, 0), corners.flip(1).T.reshape(-1, 1)], 1)
    memory, costs = torch.eye(hidden), torch.eye(_CORNERS)
    if conditioning is not None:
        mean, contrast, remembered = conditioning
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        factors = torch.tensor([mean] + [contrast] * (_CORNERS - 1)) / _CORNERS
        memory, costs = remembered * memory, factors[:, None] * torch.kron(signs, torch.kron(signs, signs))
    return torch.block_diag(torch.cat([F.pad(displacement, (0, 1)), coordinates]), memory, costs)
