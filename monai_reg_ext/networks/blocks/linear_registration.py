# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.coupled_convex import coupled_convex
from monai_reg_ext.networks.layers.least_trimmed_squares import LINEAR_KINDS, least_trimmed_squares
from monai_reg_ext.networks.layers.linear_step import linear_step
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume
from monai_reg_ext.networks.layers.translation_search import TranslationSearch
from monai_reg_ext.networks.layers.warp import identity_grid, sample, warp

__all__ = ["LinearRegistration"]

_LEAST_CELLS = 4
_LEAST_WEIGHT = 0.1  # of places without texture, so that body on air costs something
_VARIANCE_SHARE = 0.3  # of the mean variance at which a place has half of the full weight
_MATCHED_POINTS = 50  # fewer say nothing about a transform
_SETTLED = 0.01


class LinearRegistration(nn.Module):
    """Rigid or affine transform between two images, however far apart they start.

    On the coarsest of three grids every whole translation is compared at each of 27 rotations. The best few are then
    improved by a discrete search for correspondences, whose consistent ones a least trimmed squares fit puts in line,
    and the best of these is polished on the finer grids by robust Gauss-Newton steps on the features.

    Places count by the variance around them, and only where both images are known. Beside a mask's border features
    still see what lies beyond: where that is a strong edge, continue the inside outwards before.

    Args:
        kind: ``"rigid"``, ``"similarity"`` or ``"affine"``. The coarsest grid knows no shear.
        features: what is compared; by default :py:class:`MindSSC` of radius and dilation 1.
        factors: voxels per cell of the grids, from coarse to fine.
        degrees: step of the rotations; each component of the rotation vector takes -1, 0 and 1 of it.
        min_overlap: translations with less overlap than this part of the largest possible do not compete.
        candidates: starts that are improved.
        half_width: reach of the search for correspondences, in cells of the coarsest grid.
        fraction: part of the correspondences that is fitted.
        rounds: searches for correspondences.
        max_steps: Gauss-Newton steps at each finer grid; they end when none moves a voxel by 0.01 cells.

    Shape:
        - fixed: ``(B, 1, I, J, K)`` float32, voxels about as long as wide.
        - moving: ``(B, 1, I', J', K')``, the same voxel size in mm as the fixed image; any extent.
        - fixed_mask, moving_mask: as their images, not 0 where they count; ``None`` is everywhere.
        - directions: ``(B, 3, 3)`` float64, the fixed voxel axes in moving voxels, about which the rotations are
          searched: what headers say of orientation, also swapped or flipped axes. ``None`` is the identity.
        - output: ``(B, 4, 4)`` float64 on the CPU: a fixed voxel *x* is looked for at ``matrix @ x`` in moving voxels.

    Raises:
        ValueError: for an unknown kind, more than one channel, a mask of another size or empty on the coarsest grid, or
            images of less than four cells of the coarsest grid along an axis.

    Source: rotations and translations as in Kuglin & Hines' phase correlation, with the feature energy in its place;
    correspondences as in ConvexAdam's rigid fit for CuRIOUS 2020.
    """

    def __init__(
        self,
        kind: str = "affine",
        features: FeatureBlock | None = None,
        factors: Sequence[int] = (3, 2, 1),
        degrees: float = 15.0,
        min_overlap: float = 0.5,
        candidates: int = 3,
        half_width: int = 3,
        fraction: float = 0.6,
        rounds: int = 3,
        max_steps: int = 10,
    ) -> None:
        super().__init__()
        if kind not in LINEAR_KINDS:
            raise ValueError(f"kind must be one of {LINEAR_KINDS}, got {kind!r}.")
        self.kind = kind
        self.features = MindSSC(radius=1, dilation=1) if features is None else features
        self.factors = tuple(factors)
        self.degrees = degrees
        self.min_overlap = min_overlap
        self.candidates = candidates
        self.half_width = half_width
        self.fraction = fraction
        self.rounds = rounds
        self.max_steps = max_steps

    @torch.no_grad()
    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
        directions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if directions is None:
            directions = torch.eye(3, dtype=torch.float64).expand(len(fixed), 3, 3)
        sides = self._scan(fixed, fixed_mask), self._scan(moving, moving_mask)
        return torch.stack(
            [
                self._register(*(_Scan(*(values[item : item + 1] for values in side)) for side in sides), turned)
                for item, turned in enumerate(directions)
            ]
        )

    def _scan(self, image: torch.Tensor, mask: torch.Tensor | None) -> _Scan:
        least = _LEAST_CELLS * self.factors[0]
        if image.dim() != 5 or image.shape[1] != 1 or min(image.shape[2:]) < least:
            raise ValueError(
                f"LinearRegistration needs images (B, 1, I, J, K) of at least {least} voxels along each axis, got "
                f"{tuple(image.shape)}."
            )
        if mask is None:
            return _Scan(image.float(), torch.ones_like(image, dtype=torch.float32))
        if mask.shape != image.shape:
            raise ValueError(f"a mask for images {tuple(image.shape)} has their shape, got {tuple(mask.shape)}.")
        return _Scan(image.float(), (mask != 0).float())

    def _register(self, fixed: _Scan, moving: _Scan, directions: torch.Tensor) -> torch.Tensor:
        coarsest, *finer = self.factors
        pair = _Pair(fixed.pooled(coarsest), moving.pooled(coarsest), self.features)
        found = [self._match(pair, start) for start in self._search(pair, directions)]
        matrix = _between_grids(min(found, key=pair.energy), coarsest, 1)
        for factor in finer:
            pair = _Pair(fixed.pooled(factor), moving.pooled(factor), self.features)
            matrix = _between_grids(self._polish(pair, _between_grids(matrix, 1, factor)), factor, 1)
        return matrix

    def _search(self, pair: _Pair, directions: torch.Tensor) -> list[torch.Tensor]:
        """The best translation of each rotation, of these the best few."""
        moving_size = torch.tensor(pair.moving.image.shape[2:], dtype=torch.float64)
        size = [int(extent) for extent in (torch.linalg.inv(directions).abs() @ moving_size - 0.01).ceil()]
        search = TranslationSearch(pair.features, pair.weight, size)
        found = []
        for turn in _rotations(self.degrees):
            around = _centre_to_centre(directions @ turn, size, moving_size)
            energy, overlap = search(*pair.moving_at(around, size))
            energy = energy.masked_fill(overlap < self.min_overlap * overlap.max(), torch.inf)
            least, index = energy.flatten().min(0)
            shift = torch.eye(4, dtype=torch.float64)
            shift[:3, 3] = torch.stack(torch.unravel_index(index.cpu(), energy.shape)) + torch.tensor(search.first)
            found.append((least.item(), around @ shift))
        found.sort(key=lambda candidate: candidate[0])
        return [matrix for _, matrix in found[: self.candidates]]

    def _match(self, pair: _Pair, matrix: torch.Tensor) -> torch.Tensor:
        for _ in range(self.rounds):
            features, weight = pair.moving_at(matrix)
            cost_volume = SSDCostVolume(pair.features, features, (self.half_width,) * 3, symmetric=True)
            forward, negated_backward = coupled_convex(cost_volume).chunk(2)
            disagreement = torch.linalg.vector_norm(forward - warp(negated_backward, forward), dim=1, keepdim=True)
            weight = pair.weight * warp(weight, forward, padding="zeros") * (disagreement < 1)
            kept = weight.flatten() > _LEAST_WEIGHT**2
            if kept.sum() < _MATCHED_POINTS:
                break
            points = identity_grid(forward.shape[2:], forward)
            points, targets = (p.flatten(2)[0].T[kept].cpu().double() for p in (points, points + forward))
            kind = "rigid" if self.kind == "rigid" else "similarity"
            weight = weight.flatten()[kept].cpu()
            matrix = matrix @ least_trimmed_squares(points, targets, kind, weight, self.fraction)
        return matrix

    def _polish(self, pair: _Pair, matrix: torch.Tensor) -> torch.Tensor:
        identity = torch.eye(4, dtype=torch.float64)
        corners = torch.cartesian_prod(*(torch.tensor([0.0, extent]) for extent in pair.weight.shape[2:])).double()
        corners = torch.cat([corners, torch.ones_like(corners[:, :1])], 1)
        for _ in range(self.max_steps):
            features, weight = pair.moving_at(matrix)
            step = linear_step(pair.features, features, pair.weight * weight, self.kind).cpu()
            matrix = matrix @ step
            if (corners @ (step - identity).T).abs().max() < _SETTLED:
                break
        return matrix


class _Scan(NamedTuple):
    """An image ``(1, 1, I, J, K)`` and where it counts, 1 or 0."""

    image: torch.Tensor
    mask: torch.Tensor

    def pooled(self, factor: int) -> _Scan:
        if factor == 1:
            return self
        return _Scan(F.avg_pool3d(self.image, factor), (F.avg_pool3d(self.mask, factor) > 0.5).float())


class _Pair:
    """Two scans on one grid spacing, and what is known about the fixed one."""

    def __init__(self, fixed: _Scan, moving: _Scan, describe: FeatureBlock) -> None:
        for name, scan in (("fixed", fixed), ("moving", moving)):
            if not scan.mask.any():
                raise ValueError(f"the {name} mask leaves nothing on a grid of {tuple(scan.mask.shape[2:])} cells.")
        self.moving = moving
        self.describe = describe
        self.features = describe(fixed.image)
        self.weight = _weight(fixed.image, fixed.mask)

    def moving_at(self, matrix: torch.Tensor, size: Sequence[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and weight of the moving image at ``matrix @ x`` for every voxel *x* of the fixed grid or another.

        The weight is 0 where a neighbour is beyond the image, since features look there.
        """
        voxels = identity_grid(self.weight.shape[2:] if size is None else size, self.weight)
        linear, shift = matrix[:3, :3].to(voxels), matrix[:3, 3].to(voxels)
        coordinates = torch.tensordot(linear, voxels[0], dims=1)[None] + shift.view(3, 1, 1, 1)
        image = sample(self.moving.image, coordinates)
        known = sample(torch.ones_like(self.moving.mask), coordinates, padding="zeros") > 0.99
        inner = box_filter(known.float()) > 0.99
        mask = sample(self.moving.mask, coordinates, "nearest")
        return self.describe(image), _weight(image, mask * inner)

    def energy(self, matrix: torch.Tensor) -> float:
        features, weight = self.moving_at(matrix)
        weight = self.weight * weight
        energy = weight * (self.features - features).square().sum(1, keepdim=True)
        return (energy.sum() / weight.sum()).nan_to_num(torch.inf).item()


def _weight(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """0 outside the mask, inside between 0.1 and 1: how much the image varies around a voxel."""
    variance = (box_filter(image.square()) - box_filter(image).square()).clamp(min=0)
    mean = (mask * variance).sum() / mask.sum().clamp(min=1)
    half = _VARIANCE_SHARE * mean + torch.finfo(variance.dtype).tiny
    return mask * (variance / (variance + half)).clamp(min=_LEAST_WEIGHT)


def _rotations(degrees: float) -> Iterator[torch.Tensor]:
    steps = math.radians(degrees) * torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)
    for x, y, z in torch.cartesian_prod(steps, steps, steps).tolist():
        yield torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def _centre_to_centre(linear: torch.Tensor, size: Sequence[int], target_size: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = linear
    matrix[:3, 3] = (target_size - 1) / 2 - linear @ (torch.tensor(size, dtype=torch.float64) - 1) / 2
    return matrix


def _between_grids(matrix: torch.Tensor, factor: int, target_factor: int) -> torch.Tensor:
    """The same transform for grids of ``target_factor`` voxels per cell, given for those of ``factor``."""
    ratio = torch.diag(torch.tensor([factor / target_factor] * 3 + [1.0], dtype=torch.float64))
    # a cell's centre lies amid its voxels
    ratio[:3, 3] = (factor - target_factor) / (2 * target_factor)
    return ratio @ matrix @ torch.linalg.inv(ratio)
