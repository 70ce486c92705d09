# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.box_filter import box_filter, box_filter_bands
from monai_reg_ext.networks.layers.cost_volume import CostVolume
from monai_reg_ext.networks.layers.paired_points import paired_points, slabs_outside
from monai_reg_ext.networks.layers.scratch import Scratch
from monai_reg_ext.networks.layers.ssd_gradient import add_ssd_gradient

__all__ = ["SSDCostVolume", "displacement_labels", "ssd_cost_volume"]

_DEFAULT_MEMORY = 1 << 30
_DIFFERENCE_BYTES = 2 << 20


def displacement_labels(half_width: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """All whole displacements of a search window.

    Args:
        half_width: largest displacement along each axis, in cells.
        like: tensor whose device and dtype the labels share.

    Returns:
        ``(L, 3)`` in cells, ``L = prod(2 * half_width + 1)``; the displacement along axis 0 changes fastest.
    """
    steps = [torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype) for reach in reversed(half_width)]
    return torch.cartesian_prod(*steps).flip(1)


def ssd_cost_volume(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    half_width: Sequence[int],
    smooth_widths: Sequence[int] = (3, 3),
    compat: bool = False,
) -> torch.Tensor:
    """Smoothed sum of squared feature differences for every displacement of a search window.

    ``cost[l](x) = box( sum_c (fixed_c(x) - moving_c(x + d_l))^2 )`` with ``moving = 0`` outside, so that to leave the
    field of view costs the whole feature energy. A search should take :py:class:`SSDCostVolume`, which has the same
    costs without holding them; this tensor is for everything that needs all of them at once.

    Args:
        fixed: ``(B, C, i, j, k)`` features; half precision is accumulated in float32.
        moving: ``(B, C, i, j, k)`` features on the same control grid.
        half_width: largest displacement along each axis, in cells.
        smooth_widths: box filters over space, see :py:func:`box_filter`.
        compat: the reference's zero-padded box filters.

    Returns:
        ``(B, L, i, j, k)`` in the features' dtype, labels ordered as in :py:func:`displacement_labels`. Under autograd
        the differences are kept, ``C`` times the output.

    Source: Siebert, Hansen & Heinrich, "Fast 3D registration with accurate optimisation and little learning for
    Learn2Reg 2021" (ConvexAdam), correlation layer.
    """
    size = fixed.shape[2:]
    dtype = torch.promote_types(fixed.dtype, torch.float32)
    accurate = fixed.to(dtype)
    padded = F.pad(moving.to(dtype), [reach for reach in reversed(half_width) for _ in range(2)])
    starts = _displacements(half_width) + torch.tensor(list(half_width))
    cost = padded.new_empty((fixed.shape[0], len(starts), *size))
    for label, (i, j, k) in enumerate(starts.tolist()):
        shifted = padded[:, :, i : i + size[0], j : j + size[1], k : k + size[2]]
        cost[:, label] = (accurate - shifted).square().sum(1)
    return box_filter(cost, smooth_widths, compat).to(fixed.dtype)


class SSDCostVolume(CostVolume):
    """The costs of :py:func:`ssd_cost_volume`, computed chunk by chunk.

    With masks only the cells inside count: their costs are averaged by the box filters, and what lies outside does not
    enter, ``cost = box(mask * raw) / box(mask)``; 0 where no cell inside is near.

    Args:
        fixed: ``(B, C, i, j, k)`` features; half precision is accumulated in float32. Not to be changed in place while
            the volume is in use.
        moving: ``(B, C, i, j, k)`` features on the same control grid.
        half_width: largest displacement along each axis, in cells.
        smooth_widths: box filters over space, see :py:func:`box_filter`.
        compat: the reference's zero-padded box filters.
        symmetric: both directions at once, ``2B`` items. The second ``B`` items compare ``moving`` with ``fixed``
            displaced by **minus** the label, which needs no differences of its own. Searched with the same labels they
            give the negated opposite field; of equally good displacements that takes the opposite one.
        memory: bytes that may be spent on keeping the costs, by default 1 GiB. Where they do not fit they are computed
            anew at each iteration, and some chunks of 4 MiB (32 MiB on an accelerator), at least of one displacement,
            are all that is held.
        half: keep the costs in float16, in half the memory. They then have 11 binary digits, steps of 0.004 between 4
            and 8, and displacements closer than that are a tie. On MIND of two brain scans the argmin changes at 0.2 %
            of the points and the coupled convex field by 0.0003 cells on average, 0.17 at most; on noise at 1 %.
            Costs above 65504 become infinite.
        fixed_mask: ``(B, 1, i, j, k)``, 1 where a cell of the fixed features counts and 0 elsewhere; weights in between
            are taken as such. ``None``: all count.
        moving_mask: the same of the moving features, for the second half of a symmetric volume; else without effect.

    Attributes:
        mask: weights of the cells of all items ``(B or 2B, 1, i, j, k)``, or ``None`` without masks.

    Raises:
        ValueError: when features or masks have different shapes.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        half_width: Sequence[int],
        smooth_widths: Sequence[int] = (3, 3),
        compat: bool = False,
        symmetric: bool = False,
        memory: int | None = None,
        half: bool = False,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> None:
        if fixed.shape != moving.shape:
            raise ValueError(
                f"A cost volume compares features of one grid, got fixed {tuple(fixed.shape)} and moving "
                f"{tuple(moving.shape)}."
            )
        dtype = torch.promote_types(fixed.dtype, torch.float32)
        self._fixed, self._moving = (features.detach().to(dtype).contiguous() for features in (fixed, moving))
        sides = (self._fixed, self._moving) if symmetric else (self._fixed,)
        self._energy = torch.cat([sum(channel.square() for channel in side.unbind(1)) for side in sides])
        self._displacements = _displacements(half_width)
        self._smooth_widths = tuple(smooth_widths)
        self._compat = compat
        self._scratch = Scratch(self._energy)
        self.mask = _masks(self._fixed, [fixed_mask, moving_mask][: len(sides)])
        self._normalizer = self.mask if self.mask is None else _normalizer(self.mask, smooth_widths, compat)
        super().__init__(
            self._displacements.to(fixed.device, dtype),
            len(self._energy),
            fixed.shape[2:],
            (fixed, moving),
            _DEFAULT_MEMORY if memory is None else memory,
            half,
        )

    def compute(self, start: int, stop: int, passing: bool) -> torch.Tensor:
        shape = self.batch, stop - start, *self.size
        cost = self._scratch(shape) if passing else self._energy.new_empty(shape)
        write_ssd_chunk(
            self._fixed,
            self._moving,
            self._energy,
            self._displacements[start:stop],
            self._smooth_widths,
            self._compat,
            cost,
            self.mask,
            self._normalizer,
        )
        return cost

    @torch.no_grad()
    def pull_back(self, chunk_gradient: Callable[[int, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        gradients = torch.zeros_like(self._fixed), torch.zeros_like(self._moving)
        for start, cost in self:
            displacements = self._displacements[start : start + cost.shape[1]]
            add_ssd_gradient(
                chunk_gradient(start, cost),
                self._fixed,
                self._moving,
                displacements,
                self._smooth_widths,
                self._compat,
                *gradients,
                self.mask,
                self._normalizer,
            )
        return tuple(gradient.to(side.dtype) for gradient, side in zip(gradients, self.inputs, strict=True))


def write_ssd_chunk(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    energy: torch.Tensor,
    displacements: torch.Tensor,
    smooth_widths: Sequence[int],
    compat: bool,
    out: torch.Tensor,
    mask: torch.Tensor | None = None,
    normalizer: torch.Tensor | None = None,
) -> None:
    """Smoothed costs of some displacements.

    Args:
        fixed: ``(B, C, i, j, k)`` contiguous.
        moving: ``(B, C, i, j, k)`` contiguous.
        energy: ``(B, i, j, k)`` sum over channels of ``fixed^2``; followed by that of ``moving^2``, ``(2B, i, j, k)``,
            for both directions.
        displacements: ``(l, 3)`` int64 on the CPU, in cells.
        smooth_widths: box filters over space.
        compat: zero-padded box filters.
        out: ``(B or 2B, l, i, j, k)`` contiguous, overwritten.
        mask: ``(B or 2B, 1, i, j, k)`` factors of the costs before smoothing.
        normalizer: the same after it; both or neither.
    """
    twin = compiled_twin("ssd_cost_volume", fixed, moving)
    if twin is not None:
        bands = box_filter_bands(fixed.shape[2:], smooth_widths, compat)
        return twin.write_ssd_chunk(fixed, moving, energy, displacements, bands, out, mask, normalizer)
    items = len(fixed)
    flat_fixed, flat_moving, flat_out = fixed.flatten(2), moving.flatten(2), out.flatten(2)
    for label, displacement in enumerate(displacements.tolist()):
        here, there = paired_points(displacement, fixed.shape[2:])
        raw = flat_out[:items, label, here]
        _write_squared_distance(flat_fixed[..., here], flat_moving[..., there], raw)
        if len(out) > items:
            flat_out[items:, label, there] = raw
            _copy_outside(energy[items:], [-shift for shift in displacement], out[items:, label])
        _copy_outside(energy[:items], displacement, out[:items, label])
    if mask is None:
        out.copy_(box_filter(out, smooth_widths, compat))
    else:
        torch.mul(box_filter(out.mul_(mask), smooth_widths, compat), normalizer, out=out)


def _masks(fixed: torch.Tensor, masks: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Weights of the cells of all items, one mask after the other; a mask that is missing is 1."""
    shape = (len(fixed), 1, *fixed.shape[2:])
    for mask in masks:
        if mask is not None and mask.shape != shape:
            raise ValueError(f"a mask for features {tuple(fixed.shape)} has shape {shape}, got {tuple(mask.shape)}.")
    if all(mask is None for mask in masks):
        return None
    return torch.cat([fixed.new_ones(shape) if mask is None else mask.to(fixed) for mask in masks])


def _normalizer(mask: torch.Tensor, smooth_widths: Sequence[int], compat: bool) -> torch.Tensor:
    share = box_filter(mask, smooth_widths, compat)
    # what compat loses at the faces it loses with masks too
    whole = box_filter(torch.ones_like(mask), smooth_widths, compat)
    return torch.where(share > 0, whole / share, 0)


def _displacements(half_width: Sequence[int]) -> torch.Tensor:
    return displacement_labels(half_width, torch.zeros(0, dtype=torch.int64))


def _write_squared_distance(fixed: torch.Tensor, moving: torch.Tensor, out: torch.Tensor) -> None:
    """Sum over channels of the squared difference of ``(B, C, n)`` features, to ``(B, n)``."""
    points = fixed.shape[2]
    block = max(1, points)
    if fixed.device.type == "cpu":
        # differences stay in the cache
        block = max(1, _DIFFERENCE_BYTES // (fixed.shape[0] * fixed.shape[1] * fixed.element_size()))
    for start in range(0, points, block):
        part = slice(start, start + block)
        difference = fixed[..., part] - moving[..., part]
        torch.sum(difference.square_(), 1, out=out[:, part])


def _copy_outside(energy: torch.Tensor, displacement: Sequence[int], out: torch.Tensor) -> None:
    for slab in slabs_outside(displacement, energy.shape[1:]):
        out[slab] = energy[slab]
