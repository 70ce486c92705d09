# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers.jacobian import jacobian_determinant
from monai_reg_ext.networks.layers.solve_backward import solve_backward
from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.check_pair import check_affine, points_outside
from monai_reg_ext.transforms.conventions import (
    grid_voxels,
    mm_to_voxel,
    resample_ddf,
    voxel_to_mm,
    voxel_to_voxel,
)
from monai_reg_ext.transforms.warp_by_ddf import WarpByDDF
from monai_reg_ext.transforms.warp_label_smoothly import warp_label_smoothly
from monai_reg_ext.transforms.warp_points import WarpPoints

__all__ = ["FoldedFieldError", "SpatialDisplacement"]

ARRIVED = 0.05  # voxels, as near as an origin must lead to its point


class FoldedFieldError(ValueError):
    """A field was to be inverted that has no inverse; the message says where it folds."""


class SpatialDisplacement:
    """A displacement of physical space, sampled on the grid of the fixed image.

    The point ``p = affine @ x`` of fixed space goes to ``field(p) = affine @ (x + ddf(x))`` in moving space, so
    ``warped(p) = moving(field(p))``. Between voxels the ddf is interpolated linearly, beyond the grid it goes on as at
    its border.

    Args:
        ddf: ``(3, I, J, K)`` in voxels of the fixed grid, total displacement; at least 2 voxels per axis.
        affine: ``(4, 4)`` of that grid, voxel to mm RAS.

    Raises:
        ValueError: when the ddf has another shape or is not finite, or the affine is no voxel grid.
    """

    def __init__(self, ddf: torch.Tensor, affine: torch.Tensor) -> None:
        ddf = torch.as_tensor(ddf)
        if ddf.ndim != 4 or ddf.shape[0] != 3 or min(ddf.shape[1:]) < 2 or not ddf.is_floating_point():
            raise ValueError(
                "a displacement field is (3, I, J, K) floating-point voxels, at least 2 along every axis; got "
                f"{tuple(ddf.shape)} {ddf.dtype}."
            )
        if not torch.isfinite(ddf).all():
            raise ValueError("the displacement field has NaN or infinite voxels.")
        self.ddf = ddf.as_subclass(torch.Tensor)
        self.affine = torch.as_tensor(affine, dtype=torch.float64, device="cpu").as_subclass(torch.Tensor)
        check_affine("the displacement field", self.affine)

    @classmethod
    def from_metatensor(cls, ddf: MetaTensor) -> SpatialDisplacement:
        """Field from a ddf ``(3, I, J, K)`` that carries the fixed affine.

        Raises:
            TypeError: for an array or tensor without an affine: where it lies in space would be a guess.
        """
        if not isinstance(ddf, MetaTensor):
            raise TypeError(
                f"a displacement field needs its place in space, which a {type(ddf).__name__} does not tell. Give a "
                "MetaTensor, or SpatialDisplacement(ddf, fixed.affine)."
            )
        return cls(ddf, ddf.affine)

    @classmethod
    def from_chain(
        cls, chain: Sequence[torch.Tensor | SpatialDisplacement], affine: torch.Tensor, size: Sequence[int]
    ) -> SpatialDisplacement:
        """One field for transforms in a row: ``field(p) = chain[-1](...chain[1](chain[0](p)))`` for all voxels p.

        Args:
            chain: fields, and ``(4, 4)`` matrices world to world, mm RAS; a point of fixed space meets the first
                first.
            affine: ``(4, 4)`` of the grid the result is wanted on.
            size: extent of that grid.

        Returns:
            float32 field. Memory: some four float64 fields.
        """
        affine = torch.as_tensor(affine, dtype=torch.float64, device="cpu")
        fields = [part for part in chain if isinstance(part, SpatialDisplacement)]
        world = grid_voxels(size, affine, dtype=torch.float64, device=fields[0].ddf.device if fields else None)
        for part in chain:
            world = part._move(world) if isinstance(part, SpatialDisplacement) else _affine(part, world)
        identity = grid_voxels(size, torch.eye(4, dtype=torch.float64), dtype=torch.float64, device=world.device)
        return cls((_affine(torch.linalg.inv(affine), world) - identity).float(), affine)

    @property
    def size(self) -> tuple[int, int, int]:
        """Extent of the fixed grid."""
        return tuple(self.ddf.shape[1:])

    def to_metatensor(self) -> MetaTensor:
        """The ddf ``(3, I, J, K)`` with its affine."""
        return MetaTensor(self.ddf, affine=self.affine)

    def compose(self, first: SpatialDisplacement) -> SpatialDisplacement:
        """This field after another: ``field.compose(first)(p) = field(first(p))``, on the grid of ``first``.

        For images ``field.compose(first).warp(image)`` is ``first.warp(field.warp(image))`` with one interpolation
        instead of two.
        """
        return self.from_chain([first, self], first.affine, first.size)

    def resample(self, affine: torch.Tensor, size: Sequence[int]) -> SpatialDisplacement:
        """The same displacement of physical space on another grid."""
        return SpatialDisplacement(resample_ddf(self.ddf, self.affine, affine, size), affine)

    def jacobian_determinant(self) -> MetaTensor:
        """Local volume change in physical space, ``(1, I - 2, J - 2, K - 2)`` with its own affine; below 0 it folds.

        Both ends of a displacement are counted in the fixed grid's voxels, so the ratio is that of mm³ to mm³.
        """
        inner = self.affine.clone()
        inner[:3, 3] = voxel_to_mm(torch.ones(1, 3), self.affine)[0]
        return MetaTensor(jacobian_determinant(self.ddf[None]), affine=inner)

    def inverse(
        self,
        affine: torch.Tensor | None = None,
        size: Sequence[int] | None = None,
        iterations: int = 30,
        allow_folding: bool = False,
    ) -> tuple[SpatialDisplacement, float]:
        """The field that leads back, ``field(inverse(q)) = q``, on the grid of the moving image.

        Args:
            affine: ``(4, 4)`` of the moving grid; by default this field's own.
            size: extent of that grid.
            iterations: most steps per voxel, see :py:func:`solve_backward`.
            allow_folding: invert as well as can be what cannot be inverted.

        Returns:
            The inverse, and the mean distance between ``field(inverse(q))`` and q in voxels of this field, over the
            voxels q that come from inside the fixed grid; NaN when none does.

        Raises:
            FoldedFieldError: when the field folds, with the place of the worst fold.
            ValueError: when only half a grid is given.
        """
        if (affine is None) != (size is None):
            raise ValueError("a grid is an affine and a size: give both or neither.")
        if not allow_folding:
            self._refuse_folding()
        affine, size = (self.affine, self.size) if affine is None else (affine, tuple(size))
        matrix = voxel_to_voxel(affine, self.affine)
        targets = grid_voxels(size, matrix, device=self.ddf.device).flatten(1).T
        points, distances = solve_backward(self.ddf, targets, iterations)
        back = torch.linalg.inv(matrix[:3, :3]).to(targets) @ (points - targets).T
        last = torch.tensor(self.size, device=points.device) - 1
        inside = ((points >= -0.5) & (points <= last + 0.5)).all(dim=1)
        return SpatialDisplacement(back.reshape(3, *size), affine), distances[inside].double().mean().item()

    def warp(self, image: MetaTensor, mode: str = "bilinear", background: float | None = None) -> MetaTensor:
        """Moving image ``(C, ...)`` of any grid brought onto the fixed grid by one interpolation of its own voxels.

        Args:
            image: at its original resolution, with its own affine.
            mode: ``"bilinear"`` or ``"cubic"`` for intensities, see :py:class:`WarpByDDF`; ``"nearest"`` for labels as
                Learn2Reg warps them; ``"label"`` for labels with smooth borders, see :py:func:`warp_label_smoothly`.
            background: intensity beyond the image; ``None`` takes its minimum.

        Raises:
            TypeError: when the image has no affine.
        """
        if not isinstance(image, MetaTensor):
            raise TypeError(f"image must be a MetaTensor with its own affine, got {type(image).__name__}.")
        if mode == "label":
            return warp_label_smoothly(image, self.ddf, self.affine)
        return WarpByDDF(mode, background)(image, self.ddf, self.affine)

    def warp_points(self, points_mm: torch.Tensor) -> torch.Tensor:
        """Where points ``(N, 3)`` of fixed space lie in moving space, mm RAS, float64.

        Raises:
            ValueError: when points lie outside the fixed grid.
        """
        return WarpPoints()(points_mm, self.to_metatensor())

    def warp_points_back(self, points_mm: torch.Tensor, iterations: int = 50) -> torch.Tensor:
        """Where points ``(N, 3)`` of moving space come from in fixed space, mm RAS, float64; no inverse field is made.

        Raises:
            ValueError: when points come from outside the fixed grid, or from a fold where no point can be found.
        """
        targets = mm_to_voxel(points_mm, self.affine)
        voxels, distances = solve_backward(self.ddf, targets, iterations, tolerance=1e-5)
        lost = int((distances > ARRIVED).sum())
        if lost:
            raise ValueError(f"no origin found of {lost} of {len(targets)} points: the field folds there.")
        origins = voxel_to_mm(voxels, self.affine)
        outside = points_outside(origins, self.to_metatensor())
        if outside:
            raise ValueError(
                f"{outside} of {len(targets)} points come from outside the fixed image. Leave them out, or "
                "check that they are points of the moving image in mm RAS."
            )
        return origins

    def _move(self, world: torch.Tensor) -> torch.Tensor:
        """Fixed positions ``(3, ...)`` in mm RAS to moving ones."""
        positions = _affine(torch.linalg.inv(self.affine), world)
        displacement = sample(self.ddf[None], positions[None].to(self.ddf.device))[0].to(world)
        return world + torch.tensordot(self.affine[:3, :3].to(world), displacement, dims=1)

    def _refuse_folding(self) -> None:
        if min(self.size) < 3:
            return  # no voxel has neighbours on all sides
        determinant = self.jacobian_determinant()
        worst = int(determinant.argmin())
        lowest = determinant.flatten()[worst].item()
        if lowest > 0:
            return
        folded = int((determinant <= 0).sum())
        voxel = torch.stack(torch.unravel_index(torch.tensor(worst), determinant.shape[1:])) + 1
        place = voxel_to_mm(voxel[None], self.affine)[0]
        raise FoldedFieldError(
            f"the field folds in {folded} voxels and has no inverse there; worst is voxel {tuple(voxel.tolist())}, "
            f"{tuple(round(value, 1) for value in place.tolist())} mm RAS, with a Jacobian determinant of "
            f"{lowest:.3g}. Register with more smoothness, or allow folding for an approximate inverse."
        )


def _affine(matrix: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``(4, 4)`` applied to positions ``(3, I, J, K)``."""
    matrix = torch.as_tensor(matrix).to(positions)
    if matrix.shape != (4, 4):
        raise ValueError(f"a linear transform is (4, 4), world to world in mm RAS, got {tuple(matrix.shape)}.")
    return torch.tensordot(matrix[:3, :3], positions, dims=1) + matrix[:3, 3].reshape(3, 1, 1, 1)
