# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from monai_reg_ext.apps.batch_cluster import check_cluster_installed
from monai_reg_ext.apps.batch_run import run_batch
from monai_reg_ext.apps.bundle_run import BundleRun
from monai_reg_ext.apps.figures import figures_block, figures_line
from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.html_report import write_html_report
from monai_reg_ext.apps.pair_csv import read_pair_csv
from monai_reg_ext.apps.run_folder import TABLE, RunFolder
from monai_reg_ext.apps.run_options import is_measurable, split_options
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data import pair_list

__all__ = ["batch"]


def batch(
    pairs: str,
    *,
    output: str = "output",
    method: str = "convex_adam",
    settings: Any = None,
    workers: int = 1,
    scheduler: str | None = None,
    retries: int = 2,
    split: str = "registration_val",
    limit: int | None = None,
    image_from: str = "image",
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Register many pairs; goes on where it was stopped.

    monai-reg batch PAIRS [--output DIR] [--workers N] [options]

    PAIRS is a Learn2Reg folder or its <Task>_dataset.json, or a CSV table with the columns fixed and
    moving and, where there are any, fixed_label moving_label fixed_mask moving_mask fixed_points
    moving_points points_space pair; paths in it start at its folder.

      --output DIR          where results go, by default output/
      --workers N           so many processes, which share the processor's cores; by default 1.
                            More than one are a Dask cluster (pip install 'monai-reg-ext[cluster]')
      --scheduler ADDRESS   a Dask cluster that runs, e.g. tcp://host:8786; it must see the files
      --retries N           try a pair again whose process on a cluster died; by default 2 times
      --split, --limit      of a Learn2Reg task: registration_val, ...; at most so many pairs
      --image_from label    register the label maps of a Learn2Reg task in place of its images
      --method, --settings, --initial, --device, --ID VALUE    as for register
      --overwrite           remove what other settings left in DIR and start anew

    Finished pairs are skipped when the same command runs again, after an interruption or with more
    pairs; failed ones are tried again. DIR gets metrics.csv, summary.json, report.html, and a folder
    per pair. Exit status 1 tells that pairs failed; metrics.csv has the reasons.
    Example: monai-reg batch pairs.csv --output aligned --workers 2
    """
    inputs, overrides = split_options(options)
    corrections = {key: inputs.pop(key) for key in ("fixed_spacing", "moving_spacing") if key in inputs}
    if inputs:
        raise UsageError(f"no option --{next(iter(inputs))}: in a batch, labels, masks and points stand in the table.")
    if not isinstance(workers, int) or workers < 1:
        raise UsageError(f"--workers needs a number of at least 1, got {workers!r}.")
    if not isinstance(retries, int) or retries < 0:
        raise UsageError(f"--retries needs a number of at least 0, got {retries!r}.")
    if scheduler is not None or workers > 1:
        check_cluster_installed("--scheduler" if workers == 1 else "--workers")
    seed = overrides.get("seed", 0)
    todo = [{**pair, **corrections} for pair in _pairs(str(pairs), split, limit, image_from, seed)]
    run = BundleRun(method, file_list(settings), overrides, evaluate=any(map(is_measurable, todo)))
    folder, description = RunFolder(output), run.description(todo)
    with folder.alone() as lock:
        if folder.claim(description, bool(overwrite)):
            finished = sum(folder.finished(pair["pair"]) is not None for pair in todo)
            print(f"{finished} of {len(todo)} pairs are finished already.")
        folder.write_settings(description)
        summary = run_batch(run, todo, folder, lock, workers, _tell, scheduler, retries)
    report = write_html_report(folder.path)
    print(f"{summary['pairs']} pairs, {summary['failed']} failed; means:\n{figures_block(summary)}")
    print(f"results in {folder.path}, report in {report}")
    if summary["failed"]:
        raise ValueError(f"{summary['failed']} of {summary['pairs']} pairs failed, see {folder.path / TABLE}.")


def _pairs(source: str, split: str, limit: int | None, image_from: str, seed: int) -> list[dict[str, Any]]:
    if source.lower().endswith(".csv"):
        pairs = read_pair_csv(source)[:limit]
    else:
        pairs = pair_list(source, split, image_from=image_from, limit=limit, seed=seed)
    counts = collections.Counter(pair["pair"] for pair in pairs)
    for name, count in counts.items():
        if count > 1:
            raise ValueError(f"{count} pairs are called {name!r}. Give them names in a column 'pair'.")
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"the name of a pair is that of its folder, which {name!r} cannot be.")
    return pairs


def _tell(progress: str, row: dict[str, Any]) -> None:
    print(f"{progress} {row['pair']}: {figures_line(row)}", flush=True)
