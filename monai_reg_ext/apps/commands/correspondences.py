# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data import pair_list, write_points
from monai_reg_ext.data.points import SPACES
from monai_reg_ext.transforms import FindCorrespondencesd, LoadPaird

__all__ = ["correspondences"]

SIDES = ("fixed", "moving")


def correspondences(
    fixed: str,
    moving: str,
    *,
    output: str,
    fixed_mask: str | None = None,
    moving_mask: str | None = None,
    number: int = 2000,
    tolerance: float = 2.0,
    points_space: str = "ras",
    method: str = "convex_adam",
    settings: Any = "correspondences",
    initial: str = "auto",
    device: str | None = None,
) -> None:
    """Find the same places in two scans, to train on or to check a registration roughly.

    monai-reg correspondences FIXED MOVING --output DIR [options]

    Distinct places of FIXED are looked for in MOVING, and kept when they come back to where they
    started and move as those around them do. DIR gets fixed_points.csv and moving_points.csv, row by
    row the same places.

      --fixed_mask, --moving_mask   images that are not 0 where to look, e.g. in the lungs
      --number N                    places that are looked for, by default 2000; fewer come back
      --tolerance MM                how far from its start a place may come back, by default 2 mm
      --points_space SPACE          what the files count: ras or lps (mm), or voxel (Learn2Reg's)
      --initial HOW                 auto, headers, centres, mass, rigid, affine, or transform files
      --method, --settings          a bundle that finds both directions; by default convex_adam
                                    with a search of a quarter of the body's extent to each side
      --device cpu|cuda:0           by default the GPU where there is one

    Example: monai-reg correspondences a.nii.gz b.nii.gz --fixed_mask lungs.nii.gz --output points
    """
    if points_space not in SPACES:
        raise UsageError(f"--points_space must be one of {', '.join(SPACES)}, got {points_space!r}.")
    masks = {"fixed_mask": fixed_mask, "moving_mask": moving_mask}
    given = {key: str(path) for key, path in masks.items() if path is not None}
    pair = LoadPaird()(pair_list(fixed=str(fixed), moving=str(moving), **given)[0])
    finder = FindCorrespondencesd(
        int(number), float(tolerance), method=method, settings=file_list(settings), device=device, initial=initial
    )
    found, folder = finder(pair), Path(str(output)).expanduser()
    for side in SIDES:
        write_points(folder / f"{side}_points.csv", found[f"{side}_points"], points_space, pair[side].affine)
    print(f"{folder}: {len(found['fixed_points'])} corresponding points in fixed_points.csv and moving_points.csv")
