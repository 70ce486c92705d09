# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_reg_ext.data.learn2reg import Learn2RegTask
from monai_reg_ext.data.learn2reg_layout import case_of
from monai_reg_ext.data.pairing import file_stem

__all__ = ["training_labels", "training_subjects", "with_predictions"]


def training_subjects(dataset_dir: str | Path, least: int = 2) -> list[dict[str, str]]:
    """The labelled training cases of a Learn2Reg task; what cannot be trained on ends the process with one line.

    Args:
        dataset_dir: folder or JSON of the task.
        least: so many cases are needed; the images of several modalities of one patient are one case.

    Returns:
        One dictionary of paths per image: ``image``, ``label`` and, where there is one, ``mask``. No case of validation
        or test is among them.

    Raises:
        SystemExit: with the message of what is wrong.
    """
    task = _task_or_exit(dataset_dir)
    try:
        subjects = task.subjects()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    unlabelled = [subject["image"] for subject in subjects if "label" not in subject]
    if unlabelled:
        raise SystemExit(
            f"error: {task.json_path}: training needs a label map for every image, {len(unlabelled)} of "
            f"{len(subjects)} have none, e.g. {unlabelled[0]}. Put them into labelsTr under the images' names, or take "
            "these images out of 'training'."
        )
    cases = {case_of(subject["image"]) for subject in subjects}
    if len(cases) < least:
        raise SystemExit(
            f"error: {task.json_path}: training needs {least} cases at least, got {len(cases)}. Add cases, or set "
            "fewer aside."
        )
    return subjects


def with_predictions(subjects: Sequence[dict[str, str]], predictions_dir: str | Path) -> list[dict[str, str]]:
    """The cases with the label maps that a network predicted for them, as ``prediction``.

    Args:
        subjects: see :py:func:`training_subjects`.
        predictions_dir: folder of files named as the images are, or as these with the suffix ``.nii.gz``.

    Raises:
        SystemExit: when files are missing.
    """
    folder = Path(predictions_dir).expanduser()
    predicted = [_predicted(folder, subject["image"]) for subject in subjects]
    missing = [path for path in predicted if not path.is_file()]
    if missing:
        raise SystemExit(
            f"error: {len(missing)} of {len(predicted)} predicted label maps are missing, e.g. {missing[0]}. They need "
            "the names of the images."
        )
    return [{**subject, "prediction": str(path)} for subject, path in zip(subjects, predicted, strict=True)]


def training_labels(dataset_dir: str | Path, ignored: Sequence[int] = ()) -> list[int]:
    """The classes of a Learn2Reg task as its JSON names them, background (0) first, without those ignored.

    Args:
        dataset_dir: folder or JSON of the task, with ``"labels": {"1": name, ...}``, or such a dictionary for every
            modality.
        ignored: classes to leave out.

    Raises:
        SystemExit: when nothing is left, or it names something that is no number.
    """
    task = _task_or_exit(dataset_dir)
    try:
        classes = sorted(_numbers(task.content.get("labels")) - {0, *ignored})
        if not classes:
            raise ValueError(f"it names no labels{' but those ignored' if ignored else ''}.")
    except ValueError as error:
        raise SystemExit(
            f'error: {task.json_path}: {error} Put that right, e.g. "labels": {{"0": {{"1": "liver"}}}}, or give '
            'the classes, background first: --labels "[0,1]".'
        ) from None
    return [0, *classes]


def _task_or_exit(dataset_dir: str | Path) -> Learn2RegTask:
    if not dataset_dir:
        raise SystemExit("error: training needs a Learn2Reg task: give its folder as --dataset_dir.")
    try:
        return Learn2RegTask(dataset_dir)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _predicted(folder: Path, image: str) -> Path:
    # SaveImage writes NIfTI whatever it was given
    candidates = [folder / Path(image).name, folder / f"{file_stem(image)}.nii.gz"]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _numbers(labels: Any) -> set[int]:
    """Keys of ``{"1": name}``, or of ``{modality: {"1": name}}``; ``ValueError`` when these are no classes."""
    named = labels if isinstance(labels, dict) else {}
    parts = list(named.values()) if any(isinstance(value, dict) for value in named.values()) else [named]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("its labels are sorted by modality, but not all of them.")
    keys = [key for part in parts for key in part]
    if wrong := [key for key in keys if not (key.isascii() and key.isdigit())]:
        raise ValueError(f"its labels need whole numbers as keys, got {wrong[0]!r}.")
    return {int(key) for key in keys}
