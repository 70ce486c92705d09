# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Recovery of random poses by the linear stage, beside SimpleITK's, on the same pairs in one run.

    OMP_NUM_THREADS=1 python benchmarks/linear.py --data_dir DATA

Every pair is semi-synthetic: a real scan, and the same scan turned by up to 20 degrees about a random axis, shifted by
up to 50 mm and scaled by 0.9 to 1.1, resampled onto another grid that stayed where it was and lost its outermost 5 %,
with another contrast and noise. The error of a pair is the mean distance, over points of the whole body, between where
the found and the true transform look for them. Needs the extra ``benchmark`` for SimpleITK.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
import numpy as np
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms import (
    NormalizeRobust,
    affine_to_itk,
    grid_voxels,
    initial_alignment,
    lps_to_ras_affine,
    voxel_spacing,
    voxel_to_mm,
    voxel_to_voxel,
)
from monai_reg_ext.transforms.read_volume import read_volume

SCANS = (
    *(f"LPBA40/imagesTr/LPBA40_{case:04d}_0000.nii.gz" for case in (21, 23, 25, 27)),
    "LungCTelastix/baseline.mha",
    "LungCTelastix/followup.mha",
    "TotalSegmentatorCT/ct.nii.gz",
    *(f"AbdomenMR/imagesTr/AbdomenMR_{case:04d}_0000.nii.gz" for case in (1, 2, 3)),
)
MAX_SHIFT_MM, MAX_DEGREES, SCALES = 50.0, 20.0, (0.9, 1.1)
CROPPED, NOISE, GAMMAS, VOXEL_SIZES = 0.05, 0.03, (0.8, 1.25), (0.9, 1.5)
BODY, BODY_POINTS = 0.15, 2000
SUCCESS_MM = 2.0


class Pair(NamedTuple):
    name: str
    fixed: MetaTensor
    moving: MetaTensor
    pose: torch.Tensor
    body_mm: torch.Tensor


def main(data_dir: str, poses: int = 50, seed: int = 0, methods: Sequence[str] | str = ("ours", "SimpleITK")) -> None:
    """Print the errors of every pair and, per method, how many are recovered.

    Args:
        data_dir: folder of the data sets.
        poses: number of pairs; the scans take turns.
        seed: of the poses.
        methods: ``headers`` (no motion), ``centres``, ``ours_rigid``, ``ours``, ``SimpleITK``.
    """
    methods = methods.split(",") if isinstance(methods, str) else methods
    known = {"ours": _ours("affine"), "ours_rigid": _ours("rigid"), "SimpleITK": _simple_itk}
    known |= {"headers": _ours("headers"), "centres": _ours("centres")}
    errors: dict[str, list[float]] = {method: [] for method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for number in range(poses):
        pair = random_pair(Path(data_dir), seed, number)
        for method in methods:
            start = time.perf_counter()
            found = known[method](pair.fixed, pair.moving)
            seconds[method].append(time.perf_counter() - start)
            errors[method].append(mean_error(pair, found))
            print(f"{pair.name} {method} {errors[method][-1]:.3f} mm {seconds[method][-1]:.2f} s", flush=True)
    print(
        f"\n| method | within {SUCCESS_MM:g} mm | mean mm | median mm | worst mm | seconds |\n|---|---|---|---|---|---|"
    )
    for method in methods:
        values, recovered = np.array(errors[method]), sum(error < SUCCESS_MM for error in errors[method])
        print(
            f"| {method} | {recovered} of {poses} | {values.mean():.3f} | {np.median(values):.3f} | {values.max():.3f} "
            f"| {np.mean(seconds[method]):.2f} |"
        )


def random_pair(data_dir: Path, seed: int, number: int) -> Pair:
    """The pair of this number; it does not depend on the others."""
    rng = np.random.default_rng((seed, number))
    path = SCANS[number % len(SCANS)]
    fixed = NormalizeRobust()(read_volume(data_dir / path, path))
    body = voxel_to_mm(_random_voxels(fixed[0] > BODY, rng), fixed.affine)
    pose = _random_pose(body.mean(0), rng)
    return Pair(f"{number} {Path(path).name}", fixed, _moved(fixed, pose, rng), pose, body)


def mean_error(pair: Pair, found: torch.Tensor) -> float:
    difference = voxel_to_mm(pair.body_mm, found) - voxel_to_mm(pair.body_mm, pair.pose)
    return torch.linalg.vector_norm(difference, dim=1).mean().item()


def _random_voxels(inside: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    voxels = torch.as_tensor(inside).nonzero()
    return voxels[torch.from_numpy(rng.choice(len(voxels), BODY_POINTS))]


def _random_direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _random_pose(centre_mm: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    turn = Rotation.from_rotvec(np.radians(rng.uniform(0, MAX_DEGREES)) * _random_direction(rng)).as_matrix()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(rng.uniform(*SCALES) * turn)
    shift = torch.from_numpy(rng.uniform(0, MAX_SHIFT_MM) * _random_direction(rng))
    pose[:3, 3] = centre_mm + shift - pose[:3, :3] @ centre_mm
    return pose


def _moved(fixed: MetaTensor, pose: torch.Tensor, rng: np.random.Generator) -> MetaTensor:
    size = torch.tensor(fixed.shape[1:], dtype=torch.float64)
    scale = torch.from_numpy(rng.uniform(*VOXEL_SIZES, size=3))
    to_fixed = torch.diag(torch.cat([scale, scale.new_ones(1)]))
    to_fixed[:3, 3] = CROPPED * size
    extent = [int(length) for length in (1 - 2 * CROPPED) * size / scale]
    affine = fixed.affine.to(torch.float64) @ to_fixed
    matrix = voxel_to_voxel(affine, fixed.affine, torch.linalg.inv(pose))
    values = sample(fixed.as_tensor()[None], grid_voxels(extent, matrix)[None], padding="zeros")[0]
    noise = torch.from_numpy(rng.normal(0, NOISE, values.shape)).float()
    return MetaTensor(values ** rng.uniform(*GAMMAS) + noise, affine=affine)


def _ours(initial: str) -> Callable[[MetaTensor, MetaTensor], torch.Tensor]:
    return lambda fixed, moving: initial_alignment(fixed, moving, initial)


def _simple_itk(fixed: MetaTensor, moving: MetaTensor) -> torch.Tensor:
    """Mutual information, rigid then affine from the centres of geometry, at 16, 8 and 4 mm, on 20 % of the voxels."""
    import SimpleITK as sitk  # noqa: N813

    images = [_itk_image(image) for image in (fixed, moving)]
    transform = sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform())
    for start in (sitk.Euler3DTransform(), sitk.AffineTransform(3)):
        start.SetCenter(transform.GetFixedParameters()[:3])
        start.SetMatrix(transform.GetMatrix())
        start.SetTranslation(transform.GetTranslation())
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.2)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel(_shrinking(fixed))
        method.SetSmoothingSigmasPerLevel([8, 4, 2])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(*images)
        transform = start
    return _itk_matrix(transform)


def _shrinking(image: MetaTensor) -> list[int]:
    smallest = voxel_spacing(image.affine).min().item()
    return [max(1, round(size / smallest)) for size in (16, 8, 4)]


def _itk_image(image: MetaTensor) -> Any:
    import SimpleITK as sitk  # noqa: N813

    result = sitk.GetImageFromArray(image[0].as_tensor().permute(2, 1, 0).contiguous().numpy())
    spacing, origin, direction = affine_to_itk(image.affine)
    result.SetSpacing(spacing)
    result.SetOrigin(origin)
    result.SetDirection(direction)
    return result


def _itk_matrix(transform: Any) -> torch.Tensor:
    lps = torch.eye(4, dtype=torch.float64)
    lps[:3, :3] = torch.tensor(transform.GetMatrix(), dtype=torch.float64).reshape(3, 3)
    centre, shift = (torch.tensor(v, dtype=torch.float64) for v in (transform.GetCenter(), transform.GetTranslation()))
    lps[:3, 3] = centre + shift - lps[:3, :3] @ centre
    flip = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    return lps_to_ras_affine(lps) @ flip


if __name__ == "__main__":
    fire.Fire(main)
