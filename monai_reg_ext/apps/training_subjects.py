# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_reg_ext.data.learn2reg import Learn2RegTask

__all__ = ["training_labels", "training_subjects"]


def training_subjects(dataset_dir: str | Path, least: int = 2) -> list[dict[str, str]]:
    """The labelled training cases of a Learn2Reg task; what cannot be trained on ends the process with one line.

    Args:
        dataset_dir: folder or JSON of the task.
        least: so many cases are needed.

    Returns:
        One dictionary of paths per case: ``image``, ``label`` and, where there is one, ``mask``. No case of validation
        or test is among them.

    Raises:
        SystemExit: with the message of what is wrong.
    """
    try:
        task = Learn2RegTask(dataset_dir)
        subjects = task.subjects()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    unlabelled = [subject["image"] for subject in subjects if "label" not in subject]
    if unlabelled:
        raise SystemExit(
            f"error: {task.json_path}: training needs a label map for every case, {len(unlabelled)} of {len(subjects)} "
            f"have none, e.g. {unlabelled[0]}."
        )
    if len(subjects) < least:
        raise SystemExit(f"error: {task.json_path}: training needs {least} cases at least, got {len(subjects)}.")
    return subjects


def training_labels(dataset_dir: str | Path) -> list[int]:
    """The classes of a Learn2Reg task as its JSON names them, background (0) first.

    Raises:
        SystemExit: when it names none.
    """
    try:
        task = Learn2RegTask(dataset_dir)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    named = _numbers(task.content.get("labels"))
    if not named:
        raise SystemExit(
            f"error: {task.json_path} names no labels. Add them, e.g. \"labels\": {{\"0\": {{\"1\": \"liver\"}}}}, or "
            'give --labels "[0,1]".'
        )
    return sorted({0, *named})


def _numbers(labels: Any) -> set[int]:
    """Keys of ``{"1": name}``, or of ``{modality: {"1": name}}``."""
    if not isinstance(labels, dict):
        return set()
    inner = [value for value in labels.values() if isinstance(value, dict)] or [labels]
    return {int(key) for part in inner for key in part if str(key).isdigit()}
