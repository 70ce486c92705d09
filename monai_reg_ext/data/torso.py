# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""A torso as a function of position, so that it can be looked at on any grid, deformed or not.

Positions count in halves of the field of view: 0 is its centre, -1 and 1 are its ends; the axes lead right, anterior,
superior. A shape is a function that is negative inside and about the distance to its surface.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F

__all__ = ["ORGANS", "TISSUES", "Torso"]

ORGANS = ("liver", "spleen", "left_kidney", "right_kidney", "stomach")  # labels 1 to 5

TISSUES = {  # Hounsfield units of a contrast-enhanced CT
    "air": -1000.0,
    "fat": -105.0,
    "muscle": 55.0,
    "bowel": 40.0,
    "gas": -700.0,
    "lung": -800.0,
    "heart": 130.0,
    "bone": 380.0,
    "disc": 90.0,
    "liver": 110.0,
    "spleen": 130.0,
    "left_kidney": 175.0,
    "right_kidney": 175.0,
    "medulla": 90.0,
    "stomach": 25.0,
    "vessel": 215.0,
}
TEXTURE = {"fat": 20.0, "muscle": 25.0, "lung": 70.0, "bone": 90.0, "gas": 0.0}  # standard deviation; in all others:
ORGAN_TEXTURE = 18.0

Point = tuple[float, float, float]

ELLIPSOIDS: tuple[tuple[str, Point, Point, float], ...] = (  # tissue, centre, radii, tilt to the left in radians
    ("muscle", (0.22, -0.62, 0.0), (0.17, 0.12, 3.0), 0.0),
    ("muscle", (-0.22, -0.62, 0.0), (0.17, 0.12, 3.0), 0.0),
    ("muscle", (0.20, -0.38, -0.75), (0.10, 0.13, 0.75), 0.18),
    ("muscle", (-0.20, -0.38, -0.75), (0.10, 0.13, 0.75), -0.18),
    ("lung", (0.45, -0.05, 1.15), (0.34, 0.60, 0.50), 0.0),
    ("lung", (-0.45, -0.08, 1.12), (0.34, 0.58, 0.56), 0.0),
    ("heart", (-0.10, 0.22, 1.08), (0.34, 0.36, 0.36), -0.3),
    ("stomach", (-0.33, 0.22, 0.28), (0.24, 0.30, 0.32), -0.35),
    ("spleen", (-0.62, -0.27, 0.30), (0.13, 0.29, 0.29), 0.15),
    ("liver", (0.40, 0.00, 0.22), (0.38, 0.56, 0.46), -0.2),
    ("liver", (0.52, -0.06, -0.05), (0.20, 0.42, 0.36), -0.1),
    ("liver", (0.02, 0.30, 0.40), (0.36, 0.26, 0.20), 0.3),
    ("left_kidney", (-0.42, -0.34, -0.25), (0.15, 0.17, 0.27), 0.2),
    ("right_kidney", (0.42, -0.36, -0.38), (0.15, 0.17, 0.27), -0.2),
    ("medulla", (-0.38, -0.31, -0.25), (0.07, 0.08, 0.16), 0.2),
    ("medulla", (0.38, -0.33, -0.38), (0.07, 0.08, 0.16), -0.2),
)
TUBES: tuple[tuple[str, Point, Point, float, float], ...] = (  # tissue, ends, radii at the ends
    ("gas", (0.62, 0.12, -1.0), (0.60, 0.10, -0.42), 0.11, 0.10),
    ("gas", (-0.66, 0.02, -1.0), (-0.62, 0.02, -0.15), 0.09, 0.09),
    ("vessel", (-0.05, -0.28, -0.55), (-0.09, -0.30, 1.0), 0.065, 0.075),  # aorta
    ("vessel", (-0.05, -0.28, -0.55), (-0.24, -0.10, -1.0), 0.05, 0.045),  # iliac arteries
    ("vessel", (-0.05, -0.28, -0.55), (0.16, -0.10, -1.0), 0.05, 0.045),
    ("vessel", (0.13, -0.27, -0.6), (0.13, -0.22, 0.75), 0.065, 0.075),  # inferior vena cava
    ("vessel", (-0.05, -0.28, -0.18), (-0.36, -0.31, -0.25), 0.035, 0.03),  # renal arteries
    ("vessel", (-0.05, -0.28, -0.22), (0.36, -0.33, -0.38), 0.035, 0.03),
    ("vessel", (-0.55, -0.27, 0.25), (-0.02, -0.12, 0.05), 0.035, 0.045),  # splenic vein
    ("vessel", (0.02, 0.05, -0.7), (0.02, -0.10, 0.05), 0.035, 0.05),  # mesenteric vein
    ("vessel", (0.0, -0.11, 0.05), (0.28, 0.02, 0.22), 0.055, 0.05),  # portal vein and its branches
    ("vessel", (0.28, 0.02, 0.22), (0.62, 0.10, 0.12), 0.045, 0.025),
    ("vessel", (0.28, 0.02, 0.22), (0.52, -0.28, 0.20), 0.045, 0.025),
    ("vessel", (0.28, 0.02, 0.22), (0.12, 0.32, 0.36), 0.045, 0.025),
    ("vessel", (0.13, -0.20, 0.55), (0.60, -0.12, 0.38), 0.05, 0.025),  # hepatic veins
    ("vessel", (0.13, -0.20, 0.55), (0.45, 0.30, 0.36), 0.05, 0.025),
    ("vessel", (0.13, -0.20, 0.55), (-0.05, 0.28, 0.42), 0.05, 0.025),
)


class Torso:
    """Skin, body wall, ribs, spine, lungs, heart, five labelled organs, bowel and vessels.

    Args:
        generator: of the texture inside the tissues, which is part of the anatomy: it moves with them.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._coarse_waves = _random_waves(16, (0.35, 0.7), generator)
        self._fine_waves = _random_waves(24, (0.12, 0.25), generator)

    def skin(self, position: torch.Tensor) -> torch.Tensor:
        """Shape of the whole body, ``(N,)``, at positions ``(3, N)``."""
        right, anterior, superior = position
        width = 0.88 + 0.03 * torch.cos(math.pi * superior)
        return ((right / width).abs() ** 2.5 + (anterior / 0.84).abs() ** 2.5) ** 0.4 - 1

    def label(self, position: torch.Tensor) -> torch.Tensor:
        """Labels ``(N,)``, int32, of :py:data:`ORGANS`, counted from 1, 0 elsewhere, at positions ``(3, N)``."""
        label = torch.zeros_like(position[0], dtype=torch.int32)
        for tissue, centre, radii, tilt in ELLIPSOIDS:
            if tissue in ORGANS:
                label[_ellipsoid(position, centre, radii, tilt) < 0] = ORGANS.index(tissue) + 1
        return label

    def intensity(
        self, position: torch.Tensor, tissues: Mapping[str, float], texture_gain: float, edge_width: float
    ) -> torch.Tensor:
        """Image values ``(N,)``.

        Args:
            position: ``(3, N)``.
            tissues: mean value of each of :py:data:`TISSUES`.
            texture_gain: factor on the standard deviation inside the tissues.
            edge_width: in halves of the field of view; a voxel or so, as edges narrower than that make steps.
        """
        texture = texture_gain * _sum_of_waves(position, self._fine_waves)
        image = torch.full_like(position[0], tissues["air"])
        for tissue, shape in self._layers(position):
            value = tissues[tissue] + TEXTURE.get(tissue, ORGAN_TEXTURE) * texture
            image = torch.lerp(image, value, torch.sigmoid(shape * (-3.5 / edge_width)))  # 15 to 85 % in one width
        return image

    def _layers(self, position: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Tissue and shape of everything; later ones lie on top."""
        skin = self.skin(position)
        loops = _sum_of_waves(position, self._coarse_waves)
        yield "fat", skin
        yield "muscle", (skin + 0.15).abs() - 0.05
        yield "bowel", torch.maximum(skin + 0.2, 0.08 * (0.2 - loops))
        yield from self._bones(position, skin)
        for tissue, *ellipsoid in ELLIPSOIDS:
            yield tissue, _ellipsoid(position, *ellipsoid)
        for tissue, *tube in TUBES:
            yield tissue, _tube(position, *tube)

    def _bones(self, position: torch.Tensor, skin: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        right, anterior, superior = position
        rib = 0.3 - torch.cos(2 * math.pi * (superior - 0.35 * anterior) / 0.36)
        disc = 0.75 - torch.cos(2 * math.pi * superior / 0.3)
        column = torch.hypot(right, anterior + 0.5) - 0.15
        arch = torch.hypot(right, anterior + 0.72) - 0.09
        yield "bone", torch.maximum((skin + 0.17).abs() - 0.035, torch.maximum(0.05 * rib, 0.1 - superior))
        yield "bone", column
        yield "disc", torch.maximum(column, 0.04 * disc)
        yield "bone", torch.maximum(arch, 0.03 * (0.75 - disc))
        yield "disc", torch.hypot(right, anterior + 0.67) - 0.05  # spinal canal


def _random_waves(
    number: int, wavelengths: tuple[float, float], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Wave vectors ``(number, 3)`` of random direction and length, and phases ``(number, 1)``."""
    direction = F.normalize(torch.randn(number, 3, generator=generator), dim=1)
    shortest, longest = wavelengths
    wavelength = shortest + (longest - shortest) * torch.rand(number, 1, generator=generator)
    return 2 * math.pi * direction / wavelength, 2 * math.pi * torch.rand(number, 1, generator=generator)


def _sum_of_waves(position: torch.Tensor, waves: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Random texture ``(N,)`` of mean 0 and standard deviation 1."""
    vectors, phases = waves
    return torch.cos(vectors @ position + phases).sum(0) * math.sqrt(2 / len(phases))


def _ellipsoid(position: torch.Tensor, centre: Point, radii: Point, tilt: float) -> torch.Tensor:
    cos, sin = math.cos(tilt), math.sin(tilt)
    rotation = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    offset = (rotation / _column(radii)) @ (position - _column(centre))
    return min(radii) * (_length(offset) - 1)


def _tube(position: torch.Tensor, start: Point, end: Point, start_radius: float, end_radius: float) -> torch.Tensor:
    axis = _column(end) - _column(start)
    offset = position - _column(start)
    along = ((axis.T @ offset)[0] / axis.square().sum()).clamp(0, 1)
    return _length(offset - axis * along) - (start_radius + (end_radius - start_radius) * along)


def _column(point: Point) -> torch.Tensor:
    return torch.tensor(point)[:, None]


def _length(offset: torch.Tensor) -> torch.Tensor:
    return offset.square().sum(0).sqrt()
