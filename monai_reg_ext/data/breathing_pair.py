# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from scipy.ndimage import map_coordinates

from monai_reg_ext.data.breathing_carrier import AIR_HU, BreathingCarrier
from monai_reg_ext.data.lung_motion import LungMotion
from monai_reg_ext.data.pairing import join_subjects
from monai_reg_ext.networks.layers.jacobian import jacobian_determinant
from monai_reg_ext.networks.layers.warp import identity_grid, sample
from monai_reg_ext.transforms.conventions import voxel_to_mm

__all__ = ["breathing_pair"]

NO_DENSITY_HU = -1000.0
MARGIN = 2.0  # voxels


def breathing_pair(
    carrier: BreathingCarrier,
    motion: LungMotion,
    generator: torch.Generator,
    points: int = 1000,
    density: float = 1.0,
    noise_hu: float = 15.0,
    order: int = 3,
) -> dict[str, Any]:
    """A semi-synthetic pair: a real CT, and the same CT as it would be before a known motion.

    ``moving`` is the scan itself, ``fixed(x) = scan(x + u(x))``: the displacement *u* is a function of the fixed grid's
    positions, known at every voxel and between them, and nothing has to be inverted. With the motions of
    :py:func:`breathing_patients` the fixed scan is breathed out. Outside the lungs tissue moves on smoothly; nothing
    slides along the ribs. Beyond the scan its border repeats.

    Args:
        carrier: the scan.
        motion: what to do with it.
        generator: of noise and points.
        points: corresponding points, drawn evenly inside the fixed lungs, off the voxel centres, where the scan shows
            them.
        density: 1 preserves the mass inside the lungs: where they were less wide they were denser. 0 leaves densities
            as they are, what lies between is a power of the Jacobian determinant.
        noise_hu: standard deviation of the noise in each scan, besides the scan's own, which both share.
        order: of the splines that the scan is interpolated by, 0 to 5.

    Returns:
        One pair: ``pair``; ``fixed``, ``moving``, ``(1, I, J, K)`` float32 in Hounsfield units; ``fixed_mask``,
        ``moving_mask``, uint8, the lungs; ``fixed_points``, ``moving_points``, ``(points, 3)`` float64 in mm RAS;
        ``true_ddf``, ``(3, I, J, K)`` float32 in voxels of the fixed grid, on which ``moving`` lies too.
    """
    ddf = carrier.ddf(motion)
    positions = identity_grid(carrier.size, ddf)[0].double() + ddf
    scan = torch.from_numpy(map_coordinates(carrier.image[0].numpy(), positions.numpy(), order=order, mode="nearest"))
    share = sample(carrier.mask[None].float(), positions[None])[0, 0]
    fixed = _with_density(scan, ddf, density * share)
    mask = share > 0.5
    fixed_voxels = _points_in(mask & _well_inside(positions), points, generator)
    sides = (
        (f"{carrier.name}_{motion.name}", fixed[None], mask[None], fixed_voxels),
        (carrier.name, carrier.image, carrier.mask, carrier.moved(fixed_voxels, motion)),
    )
    subjects = [_subject(carrier.affine, noise_hu, generator, *side) for side in sides]
    return join_subjects(*subjects) | {"true_ddf": MetaTensor(ddf.float(), affine=carrier.affine)}


def _with_density(scan: torch.Tensor, ddf: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """The scan ``(I, J, K)`` with its density multiplied by a power of how much volume grows to what it shows."""
    growth = F.pad(jacobian_determinant(ddf[None])[None], [1] * 6, mode="replicate")[0, 0]
    thickened = (scan - NO_DENSITY_HU).clamp(min=0) * growth.clamp(min=0) ** power + NO_DENSITY_HU
    return torch.where(power > 0, thickened, scan).float().clamp(min=AIR_HU)


def _well_inside(positions: torch.Tensor) -> torch.Tensor:
    """Voxels ``(I, J, K)`` that the scan shows, with a margin for what lies between them and their neighbours."""
    last = positions.new_tensor(positions.shape[1:]).view(3, 1, 1, 1) - 1
    return ((positions >= MARGIN) & (positions <= last - MARGIN)).all(0)


def _points_in(mask: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    """Random points ``(number, 3)`` float64 in voxels inside a mask ``(I, J, K)``."""
    inside = mask.nonzero()
    if not len(inside):
        raise ValueError("this motion takes the lungs out of the scan: no voxel of them is left. Is lung_box right?")
    chosen = inside[torch.randint(len(inside), (number,), generator=generator)]
    shift = torch.rand(chosen.shape, generator=generator, dtype=torch.float64) - 0.5
    return (chosen + shift).clamp(torch.zeros(3), torch.tensor(mask.shape) - 1)


def _subject(
    affine: torch.Tensor,
    noise_hu: float,
    generator: torch.Generator,
    name: str,
    scan: torch.Tensor,
    mask: torch.Tensor,
    voxels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    noisy = scan + noise_hu * torch.randn(scan.shape, generator=generator)
    volumes = {"image": noisy, "mask": mask.to(torch.uint8)}
    on_grid = {
        key: MetaTensor(volume, affine=affine, meta={ImageMetaKey.FILENAME_OR_OBJ: name})
        for key, volume in volumes.items()
    }
    return on_grid | {"points": voxel_to_mm(voxels, affine)}
