# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_reg_ext.data.learn2reg import Learn2RegTask
from monai_reg_ext.data.pairing import pair_name
from monai_reg_ext.data.phantom import phantom_pair

__all__ = ["pair_list"]


def pair_list(
    dataset_dir: str | Path | None = None,
    split: str = "registration_val",
    fixed: str | Path | None = None,
    moving: str | Path | None = None,
    fixed_label: str | Path | None = None,
    moving_label: str | Path | None = None,
    fixed_mask: str | Path | None = None,
    moving_mask: str | Path | None = None,
    fixed_prediction: str | Path | None = None,
    moving_prediction: str | Path | None = None,
    fixed_points: str | Path | None = None,
    moving_points: str | Path | None = None,
    points_space: str = "ras",
    image_from: str = "image",
    seed: int = 0,
    limit: int | None = None,
    predictions_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """The pairs that a run is about: those of a Learn2Reg task, two files, or a phantom when nothing is given.

    An empty string counts as not given. Whether files exist is found out when a pair is loaded, so that one bad pair
    does not stop the others; only a task of which no pair is complete is refused at once.

    Args:
        dataset_dir: folder or JSON of a Learn2Reg task.
        split: its split, see :py:meth:`~monai_reg_ext.data.Learn2RegTask.pairs`.
        fixed: the image whose space the result is in.
        moving: the image to be aligned.
        fixed_label: label map of the fixed image.
        moving_label: label map of the moving image.
        fixed_mask: where the fixed image counts.
        moving_mask: where the moving image counts.
        fixed_prediction: label map that a segmentation network made of the fixed image.
        moving_prediction: likewise of the moving image.
        fixed_points: landmarks of the fixed image.
        moving_points: the corresponding landmarks of the moving image, row by row.
        points_space: what the landmark files given count in: ``"ras"`` or ``"lps"`` (mm), or ``"voxel"`` of each image.
        image_from: ``"label"`` registers the label maps of a Learn2Reg task in place of its images.
        seed: of random training pairs and of the phantom.
        limit: at most so many pairs of the task.
        predictions_dir: folder of predicted label maps for a task, with the names of its images.

    Returns:
        One dictionary per pair: ``pair``, ``fixed``, ``moving`` and what there is of ``fixed_label moving_label
        fixed_mask moving_mask fixed_prediction moving_prediction fixed_points moving_points``, and with files of points
        ``points_space``; paths, or the phantom's tensors.

    Raises:
        ValueError: when only one of two images is given, when files are given beside ``dataset_dir``, and as
            ``Learn2RegTask``.
        FileNotFoundError: as ``Learn2RegTask``.
    """
    files = {
        "fixed": fixed,
        "moving": moving,
        "fixed_label": fixed_label,
        "moving_label": moving_label,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "fixed_prediction": fixed_prediction,
        "moving_prediction": moving_prediction,
        "fixed_points": fixed_points,
        "moving_points": moving_points,
    }
    given = {key: str(path) for key, path in files.items() if path not in (None, "")}
    if dataset_dir not in (None, ""):
        if given:
            raise ValueError(f"give either dataset_dir or images, got dataset_dir={str(dataset_dir)!r} and {given}.")
        pairs = Learn2RegTask(dataset_dir, image_from).pairs(split, limit, seed, on_missing="keep")
        return pairs if predictions_dir in (None, "") else [_with_predictions(pair, predictions_dir) for pair in pairs]
    if not given:
        return [phantom_pair(seed=seed)]
    if "fixed" not in given or "moving" not in given:
        raise ValueError(f"a pair needs both fixed and moving, got only {given}.")
    space = {"points_space": points_space} if "fixed_points" in given or "moving_points" in given else {}
    return [{"pair": pair_name(given["fixed"], given["moving"]), **given, **space}]


def _with_predictions(pair: dict[str, Any], predictions_dir: str | Path) -> dict[str, Any]:
    names = {f"{side}_prediction": Path(pair[side]).name for side in ("fixed", "moving")}
    return pair | {key: str(Path(predictions_dir).expanduser() / name) for key, name in names.items()}
