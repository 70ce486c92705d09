# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from monai_reg_ext.data.pairing import join_subjects
from monai_reg_ext.data.sine_displacement import SineDisplacement
from monai_reg_ext.data.torso import TISSUES, Torso
from monai_reg_ext.transforms.conventions import grid_voxels, mm_to_ddf, voxel_to_mm

__all__ = ["phantom_pair"]

CENTRE_MM = (6.5, -21.0, 143.0)  # of the field of view, RAS
POINTS = 200
BLOCK = 32768  # voxels at once: what a processor's cache holds
NOISE_HU = 12.0
CONTRAST_HU = 15.0  # standard deviation between the scans of one tissue's value


def phantom_pair(
    size: Sequence[int] = (96, 80, 64),
    spacing: Sequence[float] = (2.0, 2.0, 3.0),
    max_displacement_mm: float = 20.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Two CT-like scans of one made-up torso that moved in between, and the exact displacement.

    The anatomy is a function of position, so neither scan is interpolated: ``moving(y) = torso(y)`` and
    ``fixed(x) = torso(x + u(x))``. They differ in contrast, strength of texture, and noise. The displacement vanishes
    at the ends of the field of view and does not fold (Jacobian determinant above 0.2). Both scans share one grid,
    whose first axis leads to the left.

    Args:
        size: voxels along each array axis. The torso fills the field of view, whatever that is.
        spacing: mm along each array axis.
        max_displacement_mm: length of the largest displacement.
        seed: of displacement, texture, contrast, noise and points.

    Returns:
        One pair: ``pair``; ``fixed``, ``moving``, ``(1, I, J, K)`` float32 in Hounsfield units; ``fixed_label``,
        ``moving_label``, int32, organs 1 to 5; ``fixed_body``, ``moving_body``, uint8, the body; ``fixed_points``,
        ``moving_points``, ``(200, 3)`` float64 in mm RAS, inside the body; ``true_ddf``, ``(3, I, J, K)`` float32 in
        voxels, with which ``fixed(x)`` is the anatomy of ``moving(x + true_ddf(x))``.

    Raises:
        ValueError: for a size below 16, a spacing or displacement out of range, or a field of view too small to be
            displaced so far without folding.
    """
    _check(size, spacing, max_displacement_mm)
    generator = torch.Generator().manual_seed(seed)
    half_mm = torch.tensor([(extent - 1) * step / 2 for extent, step in zip(size, spacing, strict=True)])
    displacement = SineDisplacement.random(size, half_mm, max_displacement_mm, generator)
    torso = Torso(generator)

    affine = _affine(spacing, half_mm)
    position = _relative(grid_voxels(size, affine).flatten(1), half_mm)
    displacement_mm = displacement(position)
    true_ddf = mm_to_ddf(displacement_mm.reshape(3, *size), affine)
    fixed = _scan("phantom_fixed", torso, position + displacement_mm / half_mm[:, None], size, affine, generator)
    moving = _scan("phantom_moving", torso, position, size, affine, generator)
    fixed["points"] = _points_in(fixed["body"], generator)
    moving["points"] = fixed["points"] + displacement(_relative(fixed["points"].T, half_mm)).T
    return join_subjects(fixed, moving) | {"true_ddf": MetaTensor(true_ddf, affine=affine)}


def _check(size: Sequence[int], spacing: Sequence[float], max_displacement_mm: float) -> None:
    if len(size) != 3 or min(size) < 16:
        raise ValueError(f"a phantom needs three axes of at least 16 voxels, got size={tuple(size)}.")
    if len(spacing) != 3 or not min(spacing) > 0:
        raise ValueError(f"a phantom needs three positive spacings in mm, got spacing={tuple(spacing)}.")
    if not max_displacement_mm >= 0:
        raise ValueError(f"max_displacement_mm must not be negative, got {max_displacement_mm}.")


def _affine(spacing: Sequence[float], half_mm: torch.Tensor) -> torch.Tensor:
    """Voxel to mm RAS; the first axis leads to the left."""
    direction = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.diag(direction * torch.tensor(spacing, dtype=torch.float64))
    affine[:3, 3] = torch.tensor(CENTRE_MM, dtype=torch.float64) - direction * half_mm
    return affine


def _relative(points_mm: torch.Tensor, half_mm: torch.Tensor) -> torch.Tensor:
    """Positions ``(3, N)`` in halves of the field of view of points ``(3, N)`` in mm."""
    return (points_mm - points_mm.new_tensor(CENTRE_MM)[:, None]) / half_mm[:, None]


def _scan(
    name: str,
    torso: Torso,
    position: torch.Tensor,
    size: Sequence[int],
    affine: torch.Tensor,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Image, label and mask of the torso, its anatomy seen at ``position``, with a contrast and noise of their own."""
    contrast = torch.randn(len(TISSUES), generator=generator) * CONTRAST_HU
    tissues = {tissue: TISSUES[tissue] + change for tissue, change in zip(TISSUES, contrast.tolist(), strict=True)}
    texture_gain = float(0.8 + 0.4 * torch.rand((), generator=generator))
    edge_width = 2 / max(size)
    blocks = position.split(BLOCK, dim=1)
    image = torch.cat([torso.intensity(block, tissues, texture_gain, edge_width) for block in blocks])
    volumes = {
        "image": image + NOISE_HU * torch.randn(image.shape, generator=generator),
        "label": torso.label(position),
        "body": (torso.skin(position) < 0).to(torch.uint8),
    }
    return {key: _on_grid(volume.reshape(1, *size), affine, name) for key, volume in volumes.items()}


def _on_grid(volume: torch.Tensor, affine: torch.Tensor, name: str) -> MetaTensor:
    return MetaTensor(volume, affine=affine, meta={ImageMetaKey.FILENAME_OR_OBJ: name})


def _points_in(mask: MetaTensor, generator: torch.Generator) -> torch.Tensor:
    """Random points ``(POINTS, 3)`` in mm RAS, off the voxel centres, inside a mask ``(1, I, J, K)``."""
    inside = mask.as_tensor()[0].nonzero()
    chosen = inside[torch.randint(len(inside), (POINTS,), generator=generator)]
    shift = torch.rand(chosen.shape, generator=generator, dtype=torch.float64) - 0.5
    last = torch.tensor(mask.shape[1:]) - 1
    return voxel_to_mm((chosen + shift).clamp(torch.zeros(3), last), mask.affine)
