# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Accuracy of a bundle beside other people's packages, on the same pairs in one run.

    python benchmarks/accuracy.py --data_dir DATA --task HippocampusMR --settings bundles/convex_adam/configs/X.json

prints a table of means over the pairs and appends it to ``--output``. ``dice30`` is what 70 % of the pairs exceed.
``convexAdam`` sees the images of the bundle's preparation (working grid, initial start, robust intensities); elastix
and ANTs get the original images and masks, as their users give them. All fields go through the same metrics.
``seconds`` is from the loaded images to the field on the fixed grid, with the initial alignment. Every method takes as
many threads as torch (``OMP_NUM_THREADS``). Needs the extra ``benchmark``.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from accuracy_methods import benchmark_methods
from accuracy_pairs import benchmark_pairs
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from monai_reg_ext.data import PairDataset
from monai_reg_ext.metrics import (
    aggregate_cases,
    compute_folding_percent,
    compute_learn2reg_dice,
    compute_learn2reg_hd95,
    compute_sdlogj,
    compute_tre,
)
from monai_reg_ext.transforms import LoadPaird, SpatialDisplacement

BUNDLES = Path(__file__).parents[1] / "bundles"
COLUMNS = (
    "dice",
    "dice30",
    "hd95",
    "tre_mm_before",
    "tre_mm",
    "outside_mm_before",
    "outside_mm",
    "clicks_mm_before",
    "clicks_mm",
    "epe_mm",
    "sdlogj",
    "folding_percent",
    "seconds",
)

Rows = dict[str, list[dict[str, float]]]


def main(
    task: str,
    data_dir: str = "",
    settings: tuple[str, ...] | str = (),
    methods: tuple[str, ...] | str = ("ours", "convexAdam"),
    bundle: str = "convex_adam",
    limit: int | None = None,
    output: str = "",
    **overrides: Any,
) -> None:
    """Register every pair of a task with every method and print means over the pairs.

    Args:
        task: a Learn2Reg folder in ``data_dir``, ``LiverMR4D``, ``LungCTelastix``, or ``phantom``.
        data_dir: folder of the data sets.
        settings: config files, separated by commas, merged behind inference.json for our method.
        methods: ``ours``, ``before`` (no motion), ``convexAdam``, ``elastix`` (affine, B-spline), ``ants`` (affine,
            SyN), ``ants_cc`` (rigid, affine, SyN with cross-correlation), or a config file of ours, several joined by
            ``+``, merged behind ``settings``.
        bundle: name of our bundle.
        limit: at most so many pairs.
        output: Markdown file that the table is appended to.
        overrides: config ids of inference.json, e.g. ``--initial centres``, ``--split training``.
    """
    set_determinism(0)
    settings, methods = (_names(value) for value in (settings, methods))
    config = bundle_config(bundle, settings, overrides)
    known = benchmark_methods(config) | {
        method: benchmark_methods(bundle_config(bundle, (*settings, *method.split("+")), overrides))["ours"]
        for method in methods
        if method.endswith(".json")
    }
    pairs = list(benchmark_pairs(task, Path(data_dir), config.get("image_from"), limit, config.get("split")))
    rows: Rows = {method: [] for method in methods}
    for pair in PairDataset(pairs, LoadPaird()):
        for method in methods:
            start = time.perf_counter()
            field = known[method](pair)
            seconds = time.perf_counter() - start
            rows[method].append({**_measure(pair, field), "seconds": seconds})
            print(pair["pair"], method, _in_words(rows[method][-1]), flush=True)
    table = _table(task, rows, settings, overrides)
    print(table)
    if output:
        with Path(output).open("a") as file:
            file.write(table)


def bundle_config(bundle: str, settings: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """inference.json of a bundle of ours with config files and values merged behind it."""
    config = ConfigParser()
    config.read_config([str(BUNDLES / bundle / "configs" / "inference.json"), *settings])
    config.update({"bundle_root": str(BUNDLES / bundle), **overrides})
    return config


def _names(value: tuple[str, ...] | str) -> tuple[str, ...]:
    return tuple(name for name in value.split(",") if name) if isinstance(value, str) else tuple(value)


def _measure(pair: Mapping[str, Any], field: SpatialDisplacement) -> dict[str, float]:
    ddf, mask = field.ddf[None], pair.get("fixed_mask")
    mask = None if mask is None else mask[None].as_tensor()
    values = {
        "sdlogj": compute_sdlogj(ddf, mask).item(),
        "folding_percent": compute_folding_percent(ddf, mask).item(),
    }
    if "moving_label" in pair:
        labels = field.warp(pair["moving_label"], mode="nearest"), pair["fixed_label"], pair["moving_label"]
        values["dice"] = 100 * float(np.nanmean(compute_learn2reg_dice(*labels).numpy()))
        values["hd95"] = float(np.nanmean(compute_learn2reg_hd95(*labels).numpy()))
    landmarks = dict(pair.get("more_points", {}))
    if "fixed_points" in pair:
        landmarks["tre"] = {side: pair[f"{side}_points"] for side in ("fixed", "moving")}
    for name, points in landmarks.items():
        fixed, moving = points["fixed"], points["moving"]
        values[f"{name}_mm"] = compute_tre(field.ddf, field.affine, fixed, moving).mean().item()
        values[f"{name}_mm_before"] = torch.linalg.vector_norm(fixed - moving, dim=1).mean().item()
    if "true_ddf" in pair:
        error = field.affine[:3, :3].float() @ (field.ddf - pair["true_ddf"].as_tensor()).flatten(1)
        values["epe_mm"] = error.norm(dim=0)[pair["fixed_body"].flatten() > 0].mean().item()
    return values


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {values[name]:.4g}" for name in COLUMNS if name in values)


def _table(task: str, rows: Rows, settings: tuple[str, ...], overrides: dict[str, Any]) -> str:
    count = len(next(iter(rows.values())))
    names = [name for name in COLUMNS if any(_source(name) in row for method in rows.values() for row in method)]
    machine = f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    choices = " ".join([Path(path).name for path in settings] + [f"{key}={value}" for key, value in overrides.items()])
    lines = [
        f"\n{task}, {count} pairs, {machine}; ours: {choices or 'defaults'}\n",
        f"| method | {' | '.join(names)} |",
    ]
    lines.append("|---" * (len(names) + 1) + "|")
    for method, values in rows.items():
        means = [_over_pairs(name, values) for name in names]
        name = " + ".join(Path(part).name for part in method.split("+"))
        lines.append(f"| {name} | " + " | ".join("–" if np.isnan(mean) else f"{mean:.4g}" for mean in means) + " |")
    return "\n".join(lines) + "\n"


def _source(column: str) -> str:
    return "dice" if column == "dice30" else column


def _over_pairs(column: str, values: list[dict[str, float]]) -> float:
    of_pairs = [row.get(_source(column), np.nan) for row in values]
    return aggregate_cases(of_pairs, "dice")["30"] if column == "dice30" else float(np.mean(of_pairs))


if __name__ == "__main__":
    fire.Fire(main)
