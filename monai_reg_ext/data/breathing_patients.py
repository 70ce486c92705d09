# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["BreathingPatient", "breathing_patients"]

KEYPOINTS, LANDMARKS = "l2r_lung_keypoints.npz", "dirlab_copd_landmarks.npz"
SPLITS = ("train", "test", "all")


class BreathingPatient(NamedTuple):
    """Corresponding places of one patient's lungs, breathed out and breathed in.

    - ``name``
    - ``exhale``, ``inhale``: ``(N, 3)`` float64 on one grid; its axes lead right, anterior, superior. The unit does not
      matter.
    """

    name: str
    exhale: torch.Tensor
    inhale: torch.Tensor


def breathing_patients(folder: str | Path, split: str = "train") -> list[BreathingPatient]:
    """Real breathing: keypoints of 20 patients of Learn2Reg's LungCT, landmarks of 10 of DIR-Lab's COPDgene.

    Both scans of a patient were cropped to the lungs and brought to one grid beforehand: most of the shift, and in some
    the change of scale, is gone from the motion.

    Args:
        folder: with ``l2r_lung_keypoints.npz`` (an array ``(N, 6)`` per case: exhale, inhale) and
            ``dirlab_copd_landmarks.npz`` (``exhale_voxel``, ``inhale_voxel``, ``(10, 300, 3)``).
        split: ``"test"`` is every third patient (10, of both sources), ``"train"`` all others (20), or ``"all"``.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    folder = Path(folder).expanduser()
    for name in (KEYPOINTS, LANDMARKS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}: give the folder of real lung correspondences.")
    patients = [*_from_keypoints(folder / KEYPOINTS), *_from_landmarks(folder / LANDMARKS)]
    if split == "all":
        return patients
    return [patient for number, patient in enumerate(patients) if (number % 3 == 2) == (split == "test")]


def _from_keypoints(path: Path) -> Iterator[BreathingPatient]:
    with np.load(path) as cases:
        for name in sorted(cases.files):
            exhale, inhale = torch.from_numpy(cases[name].astype(np.float64)).split(3, dim=1)
            yield BreathingPatient(f"l2r_{name}", exhale, inhale)


def _from_landmarks(path: Path) -> Iterator[BreathingPatient]:
    with np.load(path) as arrays:
        sides = (torch.from_numpy(arrays[f"{side}_voxel"].astype(np.float64)) for side in ("exhale", "inhale"))
        for number, (exhale, inhale) in enumerate(zip(*sides, strict=True), start=1):
            yield BreathingPatient(f"copd_{number:02d}", exhale, inhale)
