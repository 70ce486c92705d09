# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_reg_ext.data import BreathingCarrier, BreathingModel, breathing_patients
from monai_reg_ext.transforms import ResampleToFixed, mm_to_voxel, voxel_to_mm
from monai_reg_ext.transforms.read_volume import read_volume

__all__ = ["breathing_model", "breathing_scans"]

PARTS = ("seen", "held_out", "test")


def breathing_model(
    patients_dir: str | Path, part: str = "seen", every: int = 5, modes: int = 8, reach: float | None = None
) -> BreathingModel:
    """Breathing of some of the real patients; what cannot be read ends the process with one line.

    Args:
        patients_dir: see :py:func:`monai_reg_ext.data.breathing_patients`.
        part: ``"test"`` patients; of the others every fifth is ``"held_out"``, the rest is ``"seen"``.
        every: every how manyth is held out.
        modes: see :py:class:`monai_reg_ext.data.BreathingModel`.
        reach: see there.

    Raises:
        SystemExit: with the message of what is wrong.
    """
    try:
        if part not in PARTS:
            raise ValueError(f"part must be one of {PARTS}, got {part!r}.")
        patients = breathing_patients(patients_dir, "test" if part == "test" else "train")
        if part != "test":
            held_out = range(every - 1, len(patients), every)
            patients = [one for number, one in enumerate(patients) if (number in held_out) == (part == "held_out")]
        return BreathingModel(patients, modes, reach)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def breathing_scans(
    dataset_dir: str | Path, scans: Sequence[Mapping[str, Any]], spacing: float | Sequence[float] | None = None
) -> list[BreathingCarrier]:
    """Real CTs to be moved; what cannot be read ends the process with one line.

    Args:
        dataset_dir: folder that paths are relative to.
        scans: arguments of :py:class:`monai_reg_ext.data.BreathingCarrier`, ``image`` and ``mask`` as paths,
            ``lung_box`` in voxels of the image.
        spacing: voxel size in mm to which scans are brought first, which makes pairs sooner; by default they stay as
            they are.

    Raises:
        SystemExit: with the message of what is wrong.
    """
    if not str(dataset_dir):
        raise SystemExit("error: give the folder that holds the scans and the patients' points as --dataset_dir.")
    try:
        return [_carrier(Path(dataset_dir).expanduser(), spacing, **scan) for scan in scans]
    except (TypeError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _carrier(
    folder: Path,
    spacing: float | Sequence[float] | None,
    image: str,
    mask: str,
    lung_labels: Sequence[int] | None = None,
    lung_box: Sequence[Sequence[float]] | None = None,
) -> BreathingCarrier:
    if spacing is None:
        return BreathingCarrier(folder / image, folder / mask, lung_labels, lung_box)
    scan, lungs = (read_volume(folder / path, str(folder / path)) for path in (image, mask))
    resampler = ResampleToFixed(spacing)
    grid = resampler.working_grid(scan)
    if lung_box is not None:
        ends = voxel_to_mm(torch.as_tensor(lung_box, dtype=torch.float64).T, scan.affine)
        lung_box = mm_to_voxel(ends, grid[1]).T
    return BreathingCarrier(
        resampler.intensities(scan.float(), *grid), resampler.labels(lungs, *grid), lung_labels, lung_box
    )
