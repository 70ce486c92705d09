# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The pairs that ``accuracy.py`` registers, of Learn2Reg folders and of two data sets with a form of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from monai_reg_ext.data import pair_list, read_points
from monai_reg_ext.transforms import mm_to_voxel
from monai_reg_ext.transforms.read_volume import read_volume

__all__ = ["benchmark_pairs"]

LIVER_PHASES = {
    "dataset18": ("cyc_1_10", "cyc_3_10"),
    "dataset19": ("cyc_1_6", "cyc_1_9"),
    "dataset23": ("cyc_1_4", "cyc_5_4"),
}
# the header of this one says 5.0 mm in z; its companions and landmarks say 4.0
LIVER_SPACING = {("dataset18", "cyc_1_10"): (1.36719, 1.36719, 4.0)}
LUNG_POINTS = {"fixed": "baseline_landmarks_mm.txt", "moving": "followup_landmarks_reference_mm.txt"}
LUNG_CLICKS = {"fixed": "baseline_points_index.txt", "moving": "followup_points_index.txt"}

Points = dict[str, torch.Tensor]


def benchmark_pairs(
    task: str, data_dir: Path, image_from: str = "image", limit: int | None = None, split: str = "registration_val"
) -> Iterator[dict[str, Any]]:
    """What there is to load of each pair; further landmarks as ``more_points``: name to points of both sides, mm RAS.

    Args:
        task: a Learn2Reg folder in ``data_dir``, ``LiverMR4D``, ``LungCTelastix``, or ``phantom``.
        data_dir: folder of the data sets.
        image_from: ``"label"`` registers the label maps of a Learn2Reg folder.
        limit: at most so many pairs; number of phantoms.
        split: of a Learn2Reg folder; ``"training"`` is random pairs, to choose settings on.
    """
    if task == "phantom":
        yield from (pair_list(seed=seed)[0] for seed in range(limit or 5))
    elif task == "LiverMR4D":
        phases = [(person, phase) for person in LIVER_PHASES for phase in LIVER_PHASES[person]]
        yield from (_liver_pair(data_dir / task / person, phase) for person, phase in phases[:limit])
    elif task == "LungCTelastix":
        yield _lung_pair(data_dir / task)
    else:
        yield from pair_list(dataset_dir=data_dir / task, split=split, image_from=image_from, limit=limit)


def _liver_pair(folder: Path, phase: str) -> dict[str, Any]:
    names = {"fixed": "exhMaster", "moving": phase}
    outside = {side: read_points(folder / f"{name}_landmarks_outside.csv", "lps") for side, name in names.items()}
    pair = {
        "pair": f"{folder.name}_exhMaster__{phase}",
        "points_space": "lps",
        "more_points": {"outside": outside},
        **{side: str(folder / f"{name}.mha") for side, name in names.items()},
        **{f"{side}_points": str(folder / f"{name}_landmarks_liver.csv") for side, name in names.items()},
    }
    spacing = LIVER_SPACING.get((folder.name, phase))
    return pair if spacing is None else {**pair, "moving_spacing": spacing}


def _lung_pair(folder: Path) -> dict[str, Any]:
    names = {"fixed": "baseline", "moving": "followup"}
    images = {side: read_volume(folder / f"{name}.mha", name) for side, name in names.items()}
    landmarks = {side: read_points(folder / name) for side, name in LUNG_POINTS.items()}
    clicks = {side: read_points(folder / name, affine=images[side].affine) for side, name in LUNG_CLICKS.items()}
    shown = _inside_both(landmarks, images)
    print(f"LungCTelastix: {len(shown['fixed'])} of {len(landmarks['fixed'])} landmarks lie inside both images")
    return {
        "pair": "baseline__followup",
        "more_points": {"clicks": clicks},
        **{side: str(folder / f"{name}.mha") for side, name in names.items()},
        **{f"{side}_mask": str(folder / f"{name}_mask.mha") for side, name in names.items()},
        **{f"{side}_points": points for side, points in shown.items()},
    }


def _inside_both(points: Points, images: dict[str, MetaTensor]) -> Points:
    kept = torch.stack([_inside(points[side], image) for side, image in images.items()]).all(0)
    return {side: values[kept] for side, values in points.items()}


def _inside(points_mm: torch.Tensor, image: MetaTensor) -> torch.Tensor:
    voxels = mm_to_voxel(points_mm, image.affine)
    return ((voxels >= -0.5) & (voxels <= torch.tensor(image.shape[1:]) - 0.5)).all(1)
