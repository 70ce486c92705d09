# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""How well the fields of the accuracy benchmark are inverted, and how long that takes.

    OMP_NUM_THREADS=1 python benchmarks/inverse.py --data_dir DATA

registers the pairs of ``accuracy.py`` with the convex_adam bundle and inverts every field onto the moving image's own
grid. The residual at a voxel q of it, ``|field(inverse(q)) - q|`` in voxels of the fixed image, is measured anew from
the inverse as it is saved, wherever ``inverse(q)`` lies inside the fixed image. Fields that fold anywhere (Jacobian
determinant not above 0 in some voxel) have no inverse and are refused by default; they have rows of their own, inverted
as well as can be.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import fire
import numpy as np
import torch
from accuracy_methods import benchmark_methods
from accuracy_pairs import benchmark_pairs
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from monai_reg_ext.data import PairDataset
from monai_reg_ext.transforms import LoadPaird, SpatialDisplacement, grid_voxels, mm_to_voxel

CONFIGS = Path(__file__).parents[1] / "bundles" / "convex_adam" / "configs"
ASKED = 0.05  # voxels


class Task(NamedTuple):
    label: str
    name: str
    settings: tuple[str, ...] = ()
    overrides: dict[str, str] = {}  # noqa: RUF012 (never written to)


TASKS = (
    Task("HippocampusMR", "HippocampusMR"),
    Task("HippocampusMR, HippocampusMR.json", "HippocampusMR", ("HippocampusMR.json",)),
    Task("LPBA40", "LPBA40"),
    Task("LPBA40, LPBA40.json", "LPBA40", ("LPBA40.json",)),
    Task("AbdomenMR, centres", "AbdomenMR", (), {"initial": "centres"}),
    Task("LiverMR4D", "LiverMR4D"),
    Task("phantom", "phantom"),
)


class Inversion(NamedTuple):
    folded: int
    mean: float
    quantile: float
    worst: float
    seconds: float


def main(data_dir: str, tasks: Sequence[str] | str = (), limits: dict[str, int] | None = None) -> None:
    """Print a line per pair and a table with a row per task.

    Args:
        data_dir: folder of the data sets.
        tasks: names of some tasks, separated by commas; all by default.
        limits: at most so many pairs, by task, e.g. ``"{'LPBA40':6}"``.
    """
    wanted = [name for name in tasks.split(",") if name] if isinstance(tasks, str) else tasks
    SpatialDisplacement(torch.zeros(3, 4, 5, 6), torch.eye(4)).inverse()  # compiles the kernel
    rows = []
    for task in TASKS:
        if not wanted or task.name in wanted:
            inversions = _inversions(task, Path(data_dir), (limits or {}).get(task.name))
            rows += [_row(task.label, inversions, folded) for folded in (False, True)]
    print("\n| task | fields | of pairs | mean residual | of the worst pair | 99.9 % | largest | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(row for row in rows if row))
    print(f"\nResiduals in voxels; asked: a mean of at most {ASKED} where nothing folds.")


def _inversions(task: Task, data_dir: Path, limit: int | None) -> list[Inversion]:
    set_determinism(0)
    bundle = ConfigParser()
    bundle.read_config([str(CONFIGS / name) for name in ("inference.json", *task.settings)])
    bundle.update({"bundle_root": str(CONFIGS.parent), **task.overrides})
    register = benchmark_methods(bundle)["ours"]
    results = []
    for pair in PairDataset(list(benchmark_pairs(task.name, data_dir, limit=limit)), LoadPaird()):
        results.append(_invert(register(pair), pair["moving"].affine, pair["moving"].shape[1:]))
        print(pair["pair"], results[-1]._asdict(), flush=True)
    return results


def _invert(field: SpatialDisplacement, affine: torch.Tensor, size: Sequence[int]) -> Inversion:
    folded = int((field.jacobian_determinant() <= 0).sum())
    start = time.process_time()
    inverse, _ = field.inverse(affine, size, allow_folding=folded > 0)
    seconds = time.process_time() - start
    residual = _residual(field, inverse).numpy()
    return Inversion(folded, *map(float, (residual.mean(), np.quantile(residual, 0.999), residual.max())), seconds)


def _residual(field: SpatialDisplacement, inverse: SpatialDisplacement) -> torch.Tensor:
    """Distances in voxels of the field between where voxels of the inverse start and end, there and back."""
    back_mm = grid_voxels(inverse.size, inverse.affine, inverse.ddf, torch.float64).flatten(1).T
    voxels = mm_to_voxel(back_mm, field.affine)
    inside = ((voxels >= -0.5) & (voxels <= torch.tensor(field.size) - 0.5)).all(1)
    left_mm = field.compose(inverse).ddf.double().flatten(1).T[inside] @ inverse.affine[:3, :3].T
    return (left_mm @ torch.linalg.inv(field.affine[:3, :3]).T).norm(dim=1)


def _row(label: str, inversions: Sequence[Inversion], folded: bool) -> str:
    chosen = [one for one in inversions if (one.folded > 0) == folded]
    if not chosen:
        return ""
    kind = f"folded, {min(one.folded for one in chosen)} to {max(one.folded for one in chosen)} voxels"
    means = [one.mean for one in chosen]
    figures = np.mean(means), max(means), max(one.quantile for one in chosen), max(one.worst for one in chosen)
    seconds = np.mean([one.seconds for one in chosen])
    return (
        f"| {label} | {kind if folded else 'no folding'} | {len(chosen)} of {len(inversions)} | "
        + " | ".join(f"{value:.2g}" for value in figures)
        + f" | {seconds:.2f} |"
    )


if __name__ == "__main__":
    fire.Fire(main)
