# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from typing import Any

from monai_reg_ext.apps.bundle_run import BundleRun
from monai_reg_ext.apps.figures import figures_block
from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.run_folder import SUMMARY, RunFolder
from monai_reg_ext.apps.run_options import is_measurable, split_options
from monai_reg_ext.data import pair_list

__all__ = ["register"]


def register(
    fixed: str,
    moving: str,
    *,
    method: str = "convex_adam",
    output: str = "output",
    settings: Any = None,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Bring the scan MOVING into the space of the scan FIXED.

    monai-reg register FIXED MOVING [--output DIR] [--method NAME] [options]

      --output DIR             where results go, by default output/
      --method NAME            a bundle (see monai-reg bundles), or its folder; by default convex_adam
      --settings A,B           settings of the bundle or files of your own, e.g. same_modality
      --fixed_mask, --moving_mask      images that are not 0 where the scans count
      --fixed_label, --moving_label    label maps, to measure Dice and HD95
      --fixed_points, --moving_points  landmarks, to measure the distance; --points_space ras|lps|voxel
      --initial HOW            auto, headers, centres, mass, rigid, affine, or transform files (A,B)
      --uncertainty            also how far the field may be off, in mm: uncertainty.nii.gz
      --device cpu|cuda:0      by default the GPU where there is one
      --overwrite              replace results that other settings or scans left in DIR
      --ID VALUE               any value of the bundle's config, e.g. --network_def#passes 2

    Results: DIR/<fixed>__<moving>/ with warped.nii.gz, field.nii.gz (ITK, ANTs, Slicer), ddf.nii.gz and
    report.png; DIR/metrics.csv and summary.json.
    Example: monai-reg register fixed.nii.gz moving.mha --initial affine --output aligned
    """
    inputs, overrides = split_options(options)
    corrections = {key: inputs.pop(key) for key in ("fixed_spacing", "moving_spacing") if key in inputs}
    pair = {**pair_list(fixed=str(fixed), moving=str(moving), **inputs)[0], **corrections}
    run = BundleRun(method, file_list(settings), overrides, evaluate=is_measurable(pair))
    folder, description = RunFolder(output), run.description([pair])
    with folder.alone():
        if folder.claim(description, bool(overwrite)):
            print(f"{folder.path}: results of the same settings are replaced.")
        (row,) = run.run([pair], folder.path)
        if row["error"]:
            raise ValueError(row["error"])
        folder.write_settings(description)
    print(f"{row['pair']}, registered by {run.method}:")
    print(figures_block(json.loads((folder.path / SUMMARY).read_text())))
    print(f"results in {folder.path / row['pair']}, figures in {folder.path / SUMMARY}")
