# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Learned optimisation beside Adam: Learn2Optimise, VoxelMorph++, and what stands behind or before them.

    python benchmarks/learned_optimisation.py --data_dir DATA --learn2optimise L2O.pt --voxelmorph_pp VMPP.pt

prints a table for each of two data sets:

- **breathing**: semi-synthetic pairs, breathing of patients that no training saw (each as it is and mirrored) on a scan
  that no training saw; errors at 1000 exact points inside the lungs.
- **LiverMR4D**: six real pairs, whose person breathes; errors at vessels of the liver. Nothing was trained on them.

Methods whose weights are not given are left out. All see the same working grid and, but for VoxelMorph's, the same
features; seconds are the CPU's, of the network alone, without reading and preparing; they, like all that is measured of
every pair, stand in ``pairs.csv``, and what that file holds is not computed again. SDlogJ and folding are taken inside
the fixed mask where there is one.

Of the first breathing pairs ``convergence.csv`` and ``convergence.png`` have the error and the energy after every
iteration of Learn2Optimise and Adam, both from no displacement: the energy is Adam's, for both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import torch
from accuracy_pairs import benchmark_pairs
from learned_optimisation_methods import Method, Prepared, convergence, learned_methods, prepared_by
from learned_optimisation_tables import append_rows, draw_convergence, read_rows, summary

from monai_reg_ext.apps import breathing_model, breathing_scans
from monai_reg_ext.data import BreathingDataset
from monai_reg_ext.metrics import compute_folding_percent, compute_sdlogj, compute_tre
from monai_reg_ext.transforms import CheckPaird, LoadPaird
from monai_reg_ext.transforms.registration_recipe import read_bundle_config

DATA_SETS = ("breathing", "LiverMR4D")


def main(
    data_dir: str,
    out_dir: str = "learned",
    learn2optimise: str = "",
    voxelmorph_pp: str = "",
    voxelmorph: str = "",
    data_sets: tuple[str, ...] = DATA_SETS,
    pairs: int = 20,
    watched: int = 4,
    threads: int = 1,
    **overrides: Any,
) -> None:
    """Register, measure, print.

    Args:
        data_dir: folder of the data sets.
        out_dir: where CSV files and the plot go.
        learn2optimise: weights of the bundle ``learn2optimise``; empty: do without.
        voxelmorph_pp: of the bundle ``voxelmorph_pp``.
        voxelmorph: of that bundle, trained with its ``voxelmorph.json``.
        data_sets: which of them.
        pairs: at most so many of each.
        watched: breathing pairs whose convergence is followed.
        threads: of torch and of the compiled kernels.
        overrides: ids of both bundles' configs and their values, e.g. ``spacing=4``.
    """
    torch.set_num_threads(threads)
    weights = {"learn2optimise": learn2optimise, "voxelmorph_pp": voxelmorph_pp, "voxelmorph": voxelmorph}
    methods = learned_methods({name: path for name, path in weights.items() if path}, overrides)
    warm_up(methods)
    folder = Path(out_dir)
    for data_set in data_sets:
        for number, pair in enumerate(loaded_pairs(data_set, Path(data_dir), pairs)):
            measure_pair(folder / "pairs.csv", data_set, pair, methods)
            if data_set == "breathing" and number < watched:
                follow_pair(folder / "convergence.csv", pair, methods)
        print("\n".join(["", *summary(read_rows(folder / "pairs.csv"), data_set)]), flush=True)
    if (folder / "convergence.csv").is_file():
        draw_convergence(read_rows(folder / "convergence.csv"), folder / "convergence.png")


def loaded_pairs(data_set: str, data_dir: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Pairs with points in mm."""
    if data_set not in DATA_SETS:
        raise ValueError(f"data_sets are {DATA_SETS}, got {data_set!r}.")
    loading = [LoadPaird(), CheckPaird()]
    if data_set == "LiverMR4D":
        for pair in benchmark_pairs(data_set, data_dir, limit=limit):
            for transform in loading:
                pair = transform(pair)
            yield pair
        return
    # which scan is that of the bundles
    scans = read_bundle_config("learn2optimise", "breathing")["test_scans"]
    motions = breathing_model(data_dir / "LungCT", "test").motions[:limit]
    dataset = BreathingDataset(breathing_scans(data_dir, scans), motions, loading)
    yield from (dataset[number] for number in range(len(dataset)))


def measure_pair(path: Path, data_set: str, pair: dict[str, Any], methods: dict[str, Method]) -> None:
    """Append a row for every method that the file does not hold."""
    done = {(row["data_set"], row["pair"], row["method"]) for row in read_rows(path)}
    wanted = {name: one for name, one in methods.items() if (data_set, pair["pair"], name) not in done}
    prepared: dict[str, Prepared] = {}
    for name, method in wanted.items():
        if method.bundle not in prepared:
            prepared[method.bundle] = prepared_by(method, pair)
        item = prepared[method.bundle]
        begin = time.process_time()
        coarse = method.register(item)
        seconds = time.process_time() - begin
        row = {"data_set": data_set, "pair": pair["pair"], "method": name, "iterations": method.iterations}
        append_rows(path, [{**row, **measured(pair, item.completed(coarse)), "cpu_seconds": seconds}])
        print(pair["pair"], name, f"{seconds:.1f} s", flush=True)


def measured(pair: dict[str, Any], ddf: torch.Tensor) -> dict[str, float]:
    """Errors in mm and smoothness of a field on the fixed grid."""
    points = ddf, pair["fixed"].affine, pair["fixed_points"], pair["moving_points"]
    mask = pair["fixed_mask"][None] if "fixed_mask" in pair else None
    return {
        "tre_mm": float(compute_tre(*points).mean()),
        "tre_mm_snapped": float(compute_tre(*points, snap_affine=pair["moving"].affine).mean()),
        "sdlogj": float(compute_sdlogj(ddf[None], mask)),
        "folding_percent": float(compute_folding_percent(ddf[None], mask)),
    }


def follow_pair(path: Path, pair: dict[str, Any], methods: dict[str, Method]) -> None:
    """Append a row for every iteration, unless the file holds this pair."""
    if pair["pair"] in {row["pair"] for row in read_rows(path)}:
        return
    item = prepared_by(methods["Adam"], pair)
    rows = []
    for method, state in convergence(item, methods):
        error = compute_tre(
            item.completed(state.ddf), pair["fixed"].affine, pair["fixed_points"], pair["moving_points"]
        )
        of_state = {"iterations": state.iteration, "cpu_seconds": state.seconds, "energy": state.energy}
        rows.append({"pair": pair["pair"], "method": method, **of_state, "tre_mm": float(error.mean())})
    append_rows(path, rows)


def warm_up(methods: dict[str, Method]) -> None:
    """Let every method compile or load what it needs, so that no pair pays for it."""
    image = torch.rand(1, 2, 36, 38, 40, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(1, 1, 36, 38, 40), torch.ones(1, 1, 36, 38, 40)
    with torch.no_grad():
        for method in methods.values():
            if method.network is not None:
                method.network(image, *masks)


if __name__ == "__main__":
    fire.Fire(main)
