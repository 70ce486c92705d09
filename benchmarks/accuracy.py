# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Accuracy of the convex_adam bundle beside other people's packages, on the same pairs in one run.

    python benchmarks/accuracy.py --data_dir DATA --task HippocampusMR --settings bundles/convex_adam/configs/X.json

prints a table and appends it to ``--output``. Every method sees the images of the bundle's preprocessing (working grid,
robust intensities), and its field goes through the same conversion, warp and metrics. Needs the extra ``benchmark``.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from monai_reg_ext.data import PairDataset, pair_list
from monai_reg_ext.metrics import (
    compute_folding_percent,
    compute_learn2reg_dice,
    compute_learn2reg_hd95,
    compute_sdlogj,
    compute_tre,
)

CONFIGS = Path(__file__).parents[1] / "bundles" / "convex_adam" / "configs"
LIVER_PHASES = {
    "dataset18": ("cyc_1_10", "cyc_3_10"),
    "dataset19": ("cyc_1_6", "cyc_1_9"),
    "dataset23": ("cyc_1_4", "cyc_5_4"),
}
# the header of this one says 5.0 mm in z; its companions and landmarks say 4.0
LIVER_SPACING = {("dataset18", "cyc_1_10"): (1.36719, 1.36719, 4.0)}
COLUMNS = ("dice", "hd95", "tre_mm_before", "tre_mm", "epe_mm", "sdlogj", "folding_percent", "seconds")


def main(
    task: str,
    data_dir: str = "",
    settings: tuple[str, ...] | str = (),
    methods: tuple[str, ...] | str = ("ours", "convexAdam"),
    limit: int | None = None,
    output: str = "",
    **overrides: Any,
) -> None:
    """Register every validation pair of a task with every method and print means over the pairs.

    Args:
        task: a Learn2Reg folder in ``data_dir``, ``LiverMR4D``, or ``phantom``.
        data_dir: folder of the data sets.
        settings: config files, separated by commas, merged behind inference.json for our method.
        methods: ``ours``, ``before`` (no motion), ``convexAdam``.
        limit: at most so many pairs.
        output: Markdown file that the table is appended to.
        overrides: config ids of inference.json, e.g. ``--initial centres``.
    """
    set_determinism(0)
    settings, methods = (_names(value) for value in (settings, methods))
    bundle = ConfigParser()
    bundle.read_config([str(CONFIGS / "inference.json"), *settings])
    bundle.update({"bundle_root": str(CONFIGS.parent), **overrides})
    pairs = list(_pairs(task, Path(data_dir), bundle.get("image_from"), limit))
    registrations = {"ours": _ours(bundle), "before": _before, "convexAdam": _convex_adam}
    finish = _finish(bundle)
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for pair in PairDataset(pairs, bundle.get_parsed_content("preprocessing")):
        for method in methods:
            start = time.perf_counter()
            ddf = registrations[method](pair["image"].as_tensor())
            seconds = time.perf_counter() - start
            rows[method].append({**_measure(pair, finish(pair, ddf)), "seconds": seconds})
            print(pair["pair"], method, _in_words(rows[method][-1]), flush=True)
    table = _table(task, rows, settings, overrides)
    print(table)
    if output:
        with Path(output).open("a") as file:
            file.write(table)


def _names(value: tuple[str, ...] | str) -> tuple[str, ...]:
    return tuple(name for name in value.split(",") if name) if isinstance(value, str) else tuple(value)


def _pairs(task: str, data_dir: Path, image_from: str, limit: int | None) -> Iterator[dict[str, Any]]:
    if task == "phantom":
        yield from (pair_list(seed=seed)[0] for seed in range(limit or 5))
    elif task == "LiverMR4D":
        yield from (
            _liver_pair(data_dir / task / person, phase) for person in LIVER_PHASES for phase in LIVER_PHASES[person]
        )
    else:
        yield from pair_list(dataset_dir=data_dir / task, image_from=image_from, limit=limit)


def _liver_pair(folder: Path, phase: str) -> dict[str, Any]:
    pair = {"pair": f"{folder.name}_exhMaster__{phase}", "points_space": "lps"}
    for side, name in (("fixed", "exhMaster"), ("moving", phase)):
        pair[side] = str(folder / f"{name}.mha")
        pair[f"{side}_points"] = str(folder / f"{name}_landmarks_liver.csv")
    spacing = LIVER_SPACING.get((folder.name, phase))
    return pair if spacing is None else {**pair, "moving_spacing": spacing}


def _ours(bundle: ConfigParser) -> Callable[[torch.Tensor], torch.Tensor]:
    network = bundle.get_parsed_content("network")

    @torch.no_grad()
    def register(image: torch.Tensor) -> torch.Tensor:
        return network(image[None].to(bundle.get_parsed_content("device")))[0].cpu()

    return register


def _before(image: torch.Tensor) -> torch.Tensor:
    return torch.zeros(3, *image.shape[1:])


def _convex_adam(image: torch.Tensor) -> torch.Tensor:
    from convexAdam.convex_adam_MIND import convex_adam_pt

    with contextlib.redirect_stdout(io.StringIO()):  # a warning about half precision for every pair
        displacement = convex_adam_pt(image[1], image[0])
    return torch.from_numpy(displacement.astype(np.float32)).movedim(-1, 0)


def _finish(bundle: ConfigParser) -> Callable[[dict[str, Any], torch.Tensor], dict[str, Any]]:
    """What the bundle does behind the network, but for saving."""
    completion = bundle.get_parsed_content("completion")

    def finish(pair: dict[str, Any], ddf: torch.Tensor) -> dict[str, Any]:
        return completion({**pair, "pred": ddf})

    return finish


def _measure(pair: dict[str, Any], result: dict[str, Any]) -> dict[str, float]:
    pred = result["pred"]
    ddf = pred.as_tensor()
    values = {
        "sdlogj": compute_sdlogj(ddf[None]).item(),
        "folding_percent": compute_folding_percent(ddf[None]).item(),
    }
    if "warped_label" in result:
        labels = result["warped_label"], pair["fixed_label"], pair["moving_label"]
        values["dice"] = 100 * float(np.nanmean(compute_learn2reg_dice(*labels).numpy()))
        values["hd95"] = float(np.nanmean(compute_learn2reg_hd95(*labels).numpy()))
    if "fixed_points" in pair:
        points = pair["fixed_points"], pair["moving_points"]
        values["tre_mm"] = compute_tre(ddf, pred.affine, *points).mean().item()
        values["tre_mm_before"] = torch.linalg.vector_norm(points[0] - points[1], dim=1).mean().item()
    if "true_ddf" in pair:
        error = pred.affine[:3, :3].float() @ (ddf - pair["true_ddf"].as_tensor()).flatten(1)
        values["epe_mm"] = error.norm(dim=0)[pair["fixed_body"].flatten() > 0].mean().item()
    return values


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {values[name]:.4g}" for name in COLUMNS if name in values)


def _table(
    task: str, rows: dict[str, list[dict[str, float]]], settings: tuple[str, ...], overrides: dict[str, Any]
) -> str:
    count = len(next(iter(rows.values())))
    names = [name for name in COLUMNS if any(name in row for method in rows.values() for row in method)]
    machine = f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    choices = " ".join([Path(path).name for path in settings] + [f"{key}={value}" for key, value in overrides.items()])
    lines = [
        f"\n{task}, {count} pairs, {machine}; ours: {choices or 'defaults'}\n",
        f"| method | {' | '.join(names)} |",
    ]
    lines.append("|---" * (len(names) + 1) + "|")
    for method, values in rows.items():
        means = [np.mean([row.get(name, np.nan) for row in values]) for name in names]
        lines.append(f"| {method} | " + " | ".join("–" if np.isnan(mean) else f"{mean:.4g}" for mean in means) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    fire.Fire(main)
