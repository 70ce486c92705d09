# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

__all__ = ["KERNELS", "ThinPlateSpline", "thin_plate_field"]

KERNELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plate": lambda distance: torch.special.xlogy(distance.square(), distance),
    "linear": torch.neg,
}
_BLOCK = 1 << 22  # distances at once
_FLAT = 1e-5  # part of their extent: points that spread less across a plane lie on it, however they round


class ThinPlateSpline:
    r"""Smooth functions through, or near, values at scattered points.

    The sum of an affine function and of kernels :math:`\varphi(|x - p_i|)` that minimises the squared misfit plus
    ``smoothing`` times a bending energy. Affine values are reproduced whatever the smoothing. ``"plate"`` is
    :math:`r^2 \log r`, which registration uses in three dimensions too; what bends least there is ``"linear"``,
    :math:`-r`. Both are positive definite on values without affine part: any smoothing makes the system regular. It is
    solved in float64, with gradients to points and values.

    Args:
        points: ``(B, N, D)``, two or three axes, of an extent about 1: distances enter the kernel as they are.
        values: ``(B, N, C)``.
        smoothing: not negative; 0 interpolates. It counts against the kernel's values, not against the number of
            points: more points are followed more closely.
        kernel: ``"plate"`` or ``"linear"``.

    Raises:
        ValueError: for points and values that do not correspond or are not finite, too few points, points in one plane
            (or, without smoothing, twice the same), a negative smoothing or an unknown kernel.

    Source: Wahba, "Spline Models for Observational Data", 1990, chapter 2; scipy's ``RBFInterpolator`` with kernels
    ``thin_plate_spline`` and ``linear``, degree 1, gives the same.
    """

    def __init__(
        self, points: torch.Tensor, values: torch.Tensor, smoothing: float = 0.1, kernel: str = "plate"
    ) -> None:
        _check(points, values, smoothing, kernel)
        self._points, self._kernel = points, KERNELS[kernel]
        with torch.autocast(points.device.type, enabled=False):
            self._weights = self._solve(points.double(), values.double(), smoothing).to(points.dtype)

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Values ``(B, M, C)`` at positions ``(B, M, D)``, or ``(1, M, D)`` for all items, in the dtype of the points.

        Memory: blocks of 4 million distances, all of them under autograd.
        """
        block = max(1, _BLOCK // (len(self._points) * self._points.shape[1]))
        with torch.autocast(self._points.device.type, enabled=False):
            return torch.cat([self._at(part) for part in positions.to(self._points).split(block, 1)], 1)

    def _at(self, positions: torch.Tensor) -> torch.Tensor:
        positions = positions.expand(len(self._points), -1, -1)
        kernels = self._kernel(_distances(positions, self._points))
        return torch.cat([kernels, _affine_terms(positions)], 2) @ self._weights

    def _solve(self, points: torch.Tensor, values: torch.Tensor, smoothing: float) -> torch.Tensor:
        """Weights of the kernels and the affine terms, ``(B, N + D + 1, C)``."""
        terms = _affine_terms(points)
        (items, number, extra), channels = terms.shape, values.shape[2]
        kernels = self._kernel(_distances(points, points)) + smoothing * torch.eye(number).to(points)
        corner = points.new_zeros(items, extra, extra)
        matrix = torch.cat([torch.cat([kernels, terms], 2), torch.cat([terms.mT, corner], 2)], 1)
        try:
            return torch.linalg.solve(matrix, torch.cat([values, values.new_zeros(items, extra, channels)], 1))
        except torch.linalg.LinAlgError:
            raise ValueError(
                "these points determine no spline without smoothing: two of them coincide. Give smoothing > 0."
            ) from None


def thin_plate_field(
    points: torch.Tensor,
    displacements: torch.Tensor,
    size: Sequence[int],
    smoothing: float = 0.1,
    spacing: int = 4,
    kernel: str = "plate",
) -> torch.Tensor:
    """Dense field from displacements of points, see :py:class:`ThinPlateSpline`.

    Lengths count in half the longest edge of the grid, so that the field is as smooth along all axes; with ``"plate"``,
    as published, in halves of the grid along each axis. The spline is evaluated on a coarse grid that ends at the
    outermost voxels and is linear in between.

    Args:
        points: ``(B, N, D)`` in voxels of the grid.
        displacements: ``(B, N, C)``, a field's in voxels.
        size: extent of the grid, two or three axes.
        smoothing: see the class; 0.1 suits some hundreds to some thousands of points.
        spacing: at most so many voxels from one evaluation to the next.
        kernel: see the class.

    Returns:
        ``(B, C, *size)`` in the dtype of the points, channels as those of the displacements.

    Raises:
        ValueError: as the class; for a spacing below 1.
    """
    if spacing < 1:
        raise ValueError(f"spacing, voxels from one evaluation to the next, must be at least 1, got {spacing}.")
    last = points.new_tensor([extent - 1 for extent in size])
    half = (last if kernel == "plate" else last.max()).clamp(min=1) / 2
    spline = ThinPlateSpline((points - last / 2) / half, displacements, smoothing, kernel)
    nodes = [-(-(extent - 1) // spacing) + 1 for extent in size]
    axes = [torch.linspace(0, 1, number, dtype=points.dtype, device=points.device) for number in nodes]
    positions = (torch.cartesian_prod(*axes) - 0.5) * last / half
    coarse = spline(positions[None]).mT.unflatten(2, nodes)
    mode = "trilinear" if len(nodes) == 3 else "bilinear"
    return F.interpolate(coarse, size=list(size), mode=mode, align_corners=True)


def _check(points: torch.Tensor, values: torch.Tensor, smoothing: float, kernel: str) -> None:
    if points.dim() != 3 or values.dim() != 3 or points.shape[:2] != values.shape[:2] or points.shape[2] not in (2, 3):
        raise ValueError(
            "a thin-plate spline needs points (B, N, D) on two or three axes and as many values (B, N, C), got "
            f"{tuple(points.shape)} and {tuple(values.shape)}."
        )
    if points.shape[1] <= points.shape[2]:
        raise ValueError(
            f"a thin-plate spline on {points.shape[2]} axes needs at least {points.shape[2] + 1} points that do not "
            f"lie in one plane, got {points.shape[1]}."
        )
    if not (points.isfinite().all() and values.isfinite().all()):
        raise ValueError("a thin-plate spline needs finite points and values. Leave out those that are not known.")
    spread = torch.linalg.svdvals((points - points.mean(1, keepdim=True)).detach().double())
    if not (spread[:, -1] > _FLAT * spread[:, 0]).all():
        raise ValueError("these points determine no spline: they lie in one plane. Spread the points.")
    if kernel not in KERNELS or not smoothing >= 0:
        raise ValueError(f"kernel must be one of {tuple(KERNELS)} and smoothing >= 0, got {kernel!r} and {smoothing}.")


def _affine_terms(points: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.ones_like(points[..., :1]), points], -1)


def _distances(positions: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    # the expansion by products loses the digits that near points need
    return torch.cdist(positions, points, compute_mode="donot_use_mm_for_euclid_dist")
