# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Gauss-Newton beside Adam, iteration by iteration, on distance maps of abdominal label maps.

    python benchmarks/gauss_newton_iterations.py --data_dir DATA --out merged.csv
    python benchmarks/gauss_newton_iterations.py --data_dir DATA --out organs.csv --features organs
    python benchmarks/gauss_newton_iterations.py --data_dir DATA --out degraded.csv --degrade

writes a line for every field of every pair and prints a summary. Pairs that the CSV holds are not computed again.
Features are signed root distance maps, at stride 4, of all organs merged or of each organ; with ``--degrade`` of label
maps that a segmentation network might have made (``degraded_labels.py``). Dice is that of the true label maps.

- **coupled**: steps for all components together, features in all voxels, weights as published.
- **coupled, three levels**: the same, first on features averaged over cells of 8, then of 4 voxels; 3, 3 and 4 steps.
- **diagonal (reference)**: every component by itself, with momentum, as the reference.
- **Adam**: the reference's settings (weight 0.65, rate 1, three box filters before and after) in our ``AdamRefiner``,
  and far more iterations than its 25, so that it can be read off where it is after as many seconds.

Seconds are those of the CPU, of the registration alone, from the features to the control points: on one thread of a
machine at rest the same as on the clock. **energy** is what the coupled form minimises with its last weight, per voxel,
whatever the method. A second table says on how many pairs the coupled form's own energy fell in every step, from no
displacement with one and the same weight, and with a tenth of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import fire
import numpy as np
import torch
from accuracy_pairs import benchmark_pairs
from degraded_labels import degraded
from field_measures import label_dice, smoothness, squared_difference
from gauss_newton_methods import METHODS, STRIDE, Level, State, gauss_newton
from gauss_newton_tables import Row, against_adam, append_rows, falling, read_rows, summary

from monai_reg_ext.data.learn2reg_layout import case_of
from monai_reg_ext.networks.blocks.signed_distance_features import SignedDistanceFeatures
from monai_reg_ext.networks.layers.graph_laplacian import graph_laplacian
from monai_reg_ext.transforms.read_volume import read_volume

LAST_WEIGHT = 25.0
ONE_WEIGHT = "weight {:g}"


class Image(NamedTuple):
    """True label map ``(1, 1, *size)``, features ``(1, F, *size)``, Dice in percent of the label map behind them."""

    label: torch.Tensor
    features: torch.Tensor
    quality: float


def main(
    data_dir: str,
    task: str = "AbdomenCTCT",
    features: str = "merged",
    degrade: bool = False,
    methods: Sequence[str] | str = tuple(METHODS),
    fixed_weight: float = LAST_WEIGHT,
    backtracking: int = 0,
    pairs: int | None = None,
    split: str = "registration_val",
    seed: int = 0,
    keep: int = 10,
    threads: int = 1,
    out: str = "",
) -> None:
    """Register, measure, print.

    Args:
        data_dir: folder of the data sets.
        task: a Learn2Reg folder with label maps.
        features: ``merged`` or ``organs``.
        degrade: register label maps of a segmentation network's quality.
        methods: which ones, as they are named above, separated by semicolons.
        fixed_weight: of the runs that tell whether the energy falls; 0 leaves them out.
        backtracking: of these runs, see :py:class:`GaussNewtonEstimator`.
        pairs: at most so many.
        split: ``training`` to choose settings on.
        seed: of the degraded label maps.
        keep: images whose features stay in memory, up to 0.5 GB each.
        threads: of torch and of the compiled kernels.
        out: CSV of all fields; what it holds already is taken from there.
    """
    torch.set_num_threads(threads)
    if features not in ("merged", "organs"):
        raise ValueError(f"features must be 'merged' or 'organs', got {features!r}.")
    chosen = methods.split(";") if isinstance(methods, str) else list(methods)
    images = Images(features == "merged", seed if degrade else None, keep)
    warm_up(chosen)
    rows = read_rows(Path(out)) if out else []
    done = {row["pair"] for row in rows}
    for pair in benchmark_pairs(task, Path(data_dir), "label", pairs, split):
        if pair["pair"] in done:
            continue
        fixed, moving = images.pair(pair)
        common = {"pair": pair["pair"], "labels_dice": (fixed.quality + moving.quality) / 2}
        of_pair = [{**common, **row} for row in measured(fixed, moving, chosen, fixed_weight, backtracking)]
        rows += of_pair
        print(pair["pair"], _in_words(of_pair), flush=True)
        if out:
            append_rows(Path(out), of_pair)
    quality = {row["pair"]: row["labels_dice"] for row in rows}
    print(f"\n{task}, {len(quality)} pairs, {features} features, {threads} threads")
    print(f"registered label maps: Dice {np.mean(list(quality.values())):.1f} against the true ones")
    weights = [ONE_WEIGHT.format(weight) for weight in (fixed_weight, fixed_weight / 10)]
    print("\n".join(["", *summary(rows), "", *against_adam(rows), "", *falling(rows, weights)]))


class Images:
    """Label maps and features of images, kept for the pairs to come.

    Args:
        merged: one channel for all organs.
        seed: of degraded label maps; ``None`` keeps the true ones.
        keep: how many images.
    """

    def __init__(self, merged: bool, seed: int | None, keep: int) -> None:
        self.merged = merged
        self.seed = seed
        self._load = lru_cache(keep)(self._loaded)

    def pair(self, pair: dict[str, Any]) -> list[Image]:
        """Fixed and moving, without features of organs that one of them lacks."""
        images = [self._load(pair[f"{side}_label"]) for side in ("fixed", "moving")]
        if self.merged:
            return images
        channels = min(image.features.shape[1] for image in images)
        in_each = [image.features[0, :channels].flatten(1).any(1) for image in images]
        present = torch.stack(in_each).all(0).nonzero()[:, 0]
        return [image._replace(features=image.features[:, present]) for image in images]

    def _loaded(self, path: str) -> Image:
        label = read_volume(Path(path), path).as_tensor()[None]
        shown, quality = label, 100.0
        if self.seed is not None:
            name = f"{self.seed} {case_of(Path(path))}"
            shown = degraded(label, torch.Generator().manual_seed(zlib.crc32(name.encode())))
            nothing = torch.zeros((1, 3, *label.shape[2:]))
            quality = 100 * float(np.nanmean(label_dice(label, shown, nothing, _classes(label))))
        labels = None if self.merged else range(1, _classes(label))
        return Image(label, SignedDistanceFeatures(self.merged, labels)(shown), quality)


def warm_up(methods: Sequence[str]) -> None:
    """Let every method compile or load what it needs, so that no pair pays for it."""
    fixed, moving = 100 * torch.rand((2, 1, 1, 24, 20, 28), generator=torch.Generator().manual_seed(0))
    for method in methods:
        list(METHODS[method](fixed, moving))


def measured(
    fixed: Image, moving: Image, methods: Sequence[str], fixed_weight: float, backtracking: int = 0
) -> Iterator[Row]:
    """A row for every field of every method, and those of the runs with one weight, which have energies only."""
    classes = max(_classes(image.label) for image in (fixed, moving))
    for method in methods:
        for state in METHODS[method](fixed.features, moving.features):
            dice = label_dice(fixed.label, moving.label, state.ddf, classes)
            sdlogj, folding = smoothness(state.ddf)
            value = energy(fixed.features, moving.features, state, LAST_WEIGHT)
            values = {"sdlogj": sdlogj, "folding_percent": folding, "energy": value}
            yield {**_head(method, state), "dice": 100 * float(np.nanmean(dice)), **values}
    for weight in (fixed_weight, fixed_weight / 10) if fixed_weight else ():
        levels = [Level(1, STRIDE, 10, (weight, weight))]
        for state in gauss_newton(fixed.features, moving.features, levels, backtracking=backtracking):
            value = energy(fixed.features, moving.features, state, weight)
            yield {**_head(ONE_WEIGHT.format(weight), state), "energy": value}


def energy(fixed: torch.Tensor, moving: torch.Tensor, state: State, weight: float) -> float:
    """What the coupled form minimises, per voxel; :py:meth:`GaussNewtonEstimator.energy` is per control point."""
    roughness = float((state.at_points * graph_laplacian(state.at_points)).double().sum()) * STRIDE**3
    return (squared_difference(fixed, moving, state.ddf) + weight * roughness) / 2 / fixed[0, 0].numel()


def _head(method: str, state: State) -> Row:
    return {"method": method, "iteration": state.iteration, "cpu_seconds": state.seconds}


def _classes(label: torch.Tensor) -> int:
    return int(label.max()) + 1


def _in_words(rows: Sequence[Row]) -> str:
    last = {row["method"]: row for row in rows if "dice" in row and row["iteration"] in (0, 10, 25)}
    return ", ".join(f"{name} {row['dice']:.1f} ({row['cpu_seconds']:.1f} s)" for name, row in last.items())


if __name__ == "__main__":
    fire.Fire(main)
