# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.data import phantom_pair, write_points

__all__ = ["phantom"]

SIDES = ("fixed", "moving")
KINDS = {"": "", "_label": "_label", "_mask": "_body"}  # in file names, and in the phantom's keys


def phantom(folder: str, *, seed: int = 0) -> None:
    """Write a made-up pair of scans to try everything on.

    monai-reg phantom DIR [--seed N]

    Two CT-like scans of a torso that moved by up to 20 mm in between, 96 x 80 x 64 voxels: fixed.nii.gz
    and moving.nii.gz, with label maps of five organs (fixed_label.nii.gz, ...), masks of the body
    (fixed_mask.nii.gz, ...), and 200 corresponding landmarks (fixed_points.csv, ...; mm RAS).

    Example: monai-reg phantom scans
    """
    target, pair = Path(str(folder)).expanduser(), phantom_pair(seed=seed)
    volumes = {f"{side}{kind}.nii.gz": f"{side}{key}" for side in SIDES for kind, key in KINDS.items()}
    points = {f"{side}_points.csv": f"{side}_points" for side in SIDES}
    existing = [name for name in (*volumes, *points) if (target / name).exists()]
    if existing:
        raise ValueError(f"{target} holds {', '.join(existing)} already. Give another folder.")
    for name, key in volumes.items():
        write_volume(pair[key], target / name)
    for name, key in points.items():
        write_points(target / name, pair[key])
    print(f"{target}: {', '.join((*volumes, *points))}")
