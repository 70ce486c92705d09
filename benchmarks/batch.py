# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""What a pair of a cohort costs in all: reading, registering, writing, and the start of the process.

    OMP_NUM_THREADS=1 python benchmarks/batch.py --size 192x160x256

``monai-reg batch`` registers a generated pair once, and in a second run several times under other names. Both runs are
counted with all their processes; the difference between them is what the pairs cost that the second has more of, and
what is left of the first is the start: imports, reading the bundle, loading compiled kernels, the report. CPU seconds
hardly depend on what else the machine does. Linux and macOS; run it once before, so that the kernels are compiled.
"""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import fire

from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.data import phantom_pair

FIELD_OF_VIEW_MM = 192.0
HEAD = (
    "| size | CPU s of a pair | of its network, on the clock | CPU s to start a process | peak MiB of it | MB read "
    "| MB written |\n|---|---|---|---|---|---|---|"
)


class Run(NamedTuple):
    """A batch: its pairs, CPU seconds and largest process (bytes), and seconds of the network per pair."""

    pairs: int
    cpu: float
    peak: int
    network: float


def main(size: str = "192x160x256", pairs: int = 3, folder: str | None = None) -> None:
    """Print a row of the table.

    Args:
        size: voxels of the scans along each axis.
        pairs: of the second run.
        folder: for scans and results, about 200 MB per pair at 192x160x256; by default a temporary one.
    """
    extents = [int(extent) for extent in size.split("x")]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(folder or temporary)
        read = write_scans(work, extents)
        first, second = (run_batch(work, count) for count in (1, pairs))
        start, of_a_pair = straight_line(first, second)
        written = sum(path.stat().st_size for path in (work / "out1" / "pair0").iterdir())
        name = "×".join(map(str, extents))
        figures = (of_a_pair, second.network, start, second.peak / 2**20, read / 1e6, written / 1e6)
        print(f"{HEAD}\n| {name} | {' | '.join(f'{figure:.3g}' for figure in figures)} |")


def write_scans(folder: Path, extents: list[int]) -> int:
    """Write the pair as ``fixed.nii.gz`` and ``moving.nii.gz``; their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = phantom_pair(extents, [FIELD_OF_VIEW_MM / extent for extent in extents])
    files = {key: folder / f"{key}.nii.gz" for key in ("fixed", "moving")}
    for key, file in files.items():
        write_volume(pair[key].round().short(), file)
    return sum(file.stat().st_size for file in files.values())


def run_batch(folder: Path, count: int) -> Run:
    """Register the pair of a folder ``count`` times, in one worker."""
    table = folder / f"pairs{count}.csv"
    rows = [f"pair{number},fixed.nii.gz,moving.nii.gz" for number in range(count)]
    table.write_text("\n".join(["pair,fixed,moving", *rows, ""]))
    output = folder / f"out{count}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "monai_reg_ext.apps.command_line", "batch", str(table), "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (output / "metrics.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(count, cpu, peak, min(seconds))


def straight_line(first: Run, second: Run) -> tuple[float, float]:
    """CPU seconds of the start and of each pair, from two runs with different numbers of pairs."""
    of_a_pair = (second.cpu - first.cpu) / (second.pairs - first.pairs)
    return first.cpu - first.pairs * of_a_pair, of_a_pair


if __name__ == "__main__":
    fire.Fire(main)
