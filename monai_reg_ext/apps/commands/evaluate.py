# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from monai_reg_ext.apps.field_evaluation import evaluate_field, load_for_evaluation
from monai_reg_ext.apps.figures import figures_block
from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.transform_inputs import read_field, read_image
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data import Learn2RegTask, whole_file
from monai_reg_ext.data.error_line import error_line
from monai_reg_ext.handlers import RunRecorder
from monai_reg_ext.transforms import find_learn2reg_field, read_transform

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)


def evaluate(
    field: Any,
    *,
    dataset_dir: str | None = None,
    split: str = "registration_val",
    output: str | None = None,
    fixed: str | None = None,
    moving: str | None = None,
    fixed_label: str | None = None,
    moving_label: str | None = None,
    fixed_mask: str | None = None,
    fixed_points: str | None = None,
    moving_points: str | None = None,
    points_space: str = "ras",
) -> None:
    """Measure fields that exist, of any origin.

    monai-reg evaluate FIELD [options]                   one field: any transform file, or several (A,B)
    monai-reg evaluate FOLDER --dataset_dir TASK [--split registration_val] [--output DIR]
                                                         the fields of a Learn2Reg task

      --fixed_label, --moving_label     Dice and HD95
      --fixed_points, --moving_points   mean distance; --points_space ras|lps|voxel
      --fixed_mask                      where smoothness and folding are taken
      --fixed, --moving                 their grids, if FIELD has none or points are in voxels
      --output                          a JSON file for the figures of one field, a folder for the
                                        metrics.csv and summary.json of a task

    FOLDER holds a submission (disp_0001_0002.nii.gz, also .npz and the names with modalities) or is the
    output of a run. With --dataset_dir landmarks are taken as the challenge does, with cubic splines.
    The direction of a field is that of the output of register: fixed points to moving ones.

    Example: monai-reg evaluate 1Warp.nii.gz --fixed_label a.nii.gz --moving_label b.nii.gz
    """
    files = {
        "fixed": fixed,
        "moving": moving,
        "fixed_label": fixed_label,
        "moving_label": moving_label,
        "fixed_mask": fixed_mask,
        "fixed_points": fixed_points,
        "moving_points": moving_points,
    }
    given = {key: str(path) for key, path in files.items() if path is not None}
    if dataset_dir is not None:
        if given:
            raise UsageError(f"--dataset_dir names the files; --{next(iter(given))} does not go with it.")
        _evaluate_task(Path(str(field)).expanduser(), str(dataset_dir), split, output)
        return
    if Path(str(field)).expanduser().is_dir():
        raise UsageError(f"{field} is a folder: give --dataset_dir, the task that its fields belong to.")
    row = _evaluate_one(file_list(field), given, points_space)
    _tell(_summary([row], "field", None), output)


def _evaluate_one(field: list[str], given: dict[str, str], points_space: str) -> dict[str, Any]:
    reference = read_image(given.get("fixed", given.get("fixed_label")), "--fixed")
    displacement = read_field(field, reference)
    pair = load_for_evaluation({**given, "points_space": points_space}, displacement.to_metatensor())
    return _row(",".join(field), evaluate_field(displacement, pair))


def _evaluate_task(folder: Path, dataset_dir: str, split: str, output: str | None) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of fields at {folder}.")
    rows = [_evaluate_pair(folder, pair) for pair in Learn2RegTask(dataset_dir).pairs(split, on_missing="keep")]
    summary = _summary(rows, "fields", output)
    print(f"{summary['pairs']} pairs, {summary['failed']} failed; means:")
    _tell(summary, None)
    failed = [f"{row['pair']}: {row['error']}" for row in rows if row["error"]]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} pairs failed, e.g. {failed[0]}")


def _evaluate_pair(folder: Path, pair: dict[str, str]) -> dict[str, Any]:
    try:
        image = read_image(pair["fixed"], "fixed")
        field = read_transform(_field_of(folder, pair), image)
        return _row(pair["pair"], evaluate_field(field, load_for_evaluation(pair, image), "cubic"))
    except Exception as error:  # one pair must not stop the others
        logger.debug("pair %s: traceback", pair["pair"], exc_info=True)
        return {"pair": pair["pair"], "error": error_line(error)}


def _field_of(folder: Path, pair: dict[str, str]) -> Path:
    of_run = folder / pair["pair"] / "ddf.nii.gz"
    return of_run if of_run.is_file() else find_learn2reg_field(folder, pair["fixed"], pair["moving"])


def _row(pair: str, figures: dict[str, float]) -> dict[str, Any]:
    return {"pair": pair, "error": "", **{name: value for name, value in figures.items() if not math.isnan(value)}}


def _summary(rows: list[dict[str, Any]], method: str, output: str | None) -> dict[str, Any]:
    recorder = RunRecorder(output or ".", method)
    recorder.rows = rows
    if output is None:
        return recorder.summary()
    recorder.write_table()
    return recorder.write_summary()


def _tell(summary: dict[str, Any], output: str | None) -> None:
    if output is not None:
        with whole_file(Path(str(output))) as path:
            path.write_text(json.dumps(summary, indent=4) + "\n")
    print(figures_block(summary))
