# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch

__all__ = ["SineDisplacement"]

MODES = tuple(product((1, 2), repeat=3))  # half waves per axis across the field of view
SMALLEST_DETERMINANT = 0.2
DRAWS = 50


class SineDisplacement:
    """A smooth displacement that vanishes at the ends of the field of view: a sum of products of sines.

    Args:
        coefficients_mm: ``(3, 8)``, amplitude of each of :py:data:`MODES` along each axis.
    """

    def __init__(self, coefficients_mm: torch.Tensor) -> None:
        self.coefficients_mm = coefficients_mm

    def __call__(self, position: torch.Tensor) -> torch.Tensor:
        """Displacements ``(3, N)`` in mm at positions ``(3, N)`` in halves of the field of view."""
        half_waves = torch.tensor([1.0, 2.0])[:, None, None] * (position + 1) * (math.pi / 2)
        sines = torch.sin(half_waves)  # (half waves, axis, N)
        modes = [sines[i - 1, 0] * sines[j - 1, 1] * sines[k - 1, 2] for i, j, k in MODES]
        return self.coefficients_mm.to(position.dtype) @ torch.stack(modes)

    @classmethod
    def random(
        cls, size: Sequence[int], half_mm: torch.Tensor, max_displacement_mm: float, generator: torch.Generator
    ) -> SineDisplacement:
        """The first random draw that does not fold.

        Args:
            size: voxels of the grid on which the largest displacement and the folding are looked at.
            half_mm: ``(3,)``, half the field of view.
            max_displacement_mm: length of the largest displacement.
            generator: source of the coefficients; long waves are larger than short ones.

        Raises:
            ValueError: when every draw folds, because the displacement is too large for the field of view.
        """
        position = _lattice(size)
        decay = torch.tensor([1.0 / sum(half_wave**2 for half_wave in mode) for mode in MODES])
        for _ in range(DRAWS):
            draw = cls(torch.randn(3, len(MODES), generator=generator) * decay)
            displacement = draw(position)
            factor = max_displacement_mm / displacement.square().sum(0).max().sqrt()
            field_mm = (factor * displacement).reshape(3, *size)
            if _smallest_determinant(field_mm, half_mm) > SMALLEST_DETERMINANT:
                return cls(factor * draw.coefficients_mm)
        raise ValueError(
            f"no displacement of {max_displacement_mm} mm without folding in a field of view of "
            f"{(2 * half_mm).tolist()} mm: enlarge size or spacing, or displace less."
        )


def _lattice(size: Sequence[int]) -> torch.Tensor:
    """Voxels of a grid, ``(3, N)`` with the last axis fastest, in halves of the field of view: first -1, last 1."""
    axes = [torch.linspace(-1, 1, extent) for extent in size]
    return torch.stack(torch.meshgrid(axes, indexing="ij")).flatten(1)


def _smallest_determinant(field_mm: torch.Tensor, half_mm: torch.Tensor) -> float:
    """Smallest Jacobian determinant of ``x + field_mm(x)``, by central differences."""
    steps = [2 * half / (extent - 1) for half, extent in zip(half_mm.tolist(), field_mm.shape[1:], strict=True)]
    rows = torch.gradient(field_mm, spacing=steps, dim=(1, 2, 3))
    first, second, third = (row + torch.eye(3)[axis, :, None, None, None] for axis, row in enumerate(rows))
    return float((first * torch.linalg.cross(second, third, dim=0)).sum(0).min())
