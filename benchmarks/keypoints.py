# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Keypoints and automatic correspondences in lungs whose motion is known.

    python benchmarks/keypoints.py --data_dir DATA

takes the semi-synthetic test pairs of ``learned_optimisation.py``: keypoints of the fixed scan within its lungs, then
what ``FindCorrespondencesd`` finds of them in the moving scan with its defaults. It prints a row per pair, and means:

- **keypoints**, **CPU s**: how many are found, and seconds of all threads for them.
- **correspondences**, **CPU s**: how many of them are kept, and seconds for registration, search and checks.
- **within 2 mm**: share of those kept that lie so near to where the known motion takes them.
- **mean mm**: their mean distance from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fire
import torch
from learned_optimisation import loaded_pairs

from monai_reg_ext.transforms import FindCorrespondencesd, WarpPoints

COLUMNS = ("keypoints", "CPU s", "correspondences", "CPU s", "within 2 mm %", "mean mm", "before mm")


def main(data_dir: str, pairs: int = 20, number: int = 2000, threads: int = 2, **overrides: Any) -> None:
    """Measure and print.

    Args:
        data_dir: folder of the data sets.
        pairs: at most so many.
        number: of keypoints that are looked for.
        threads: of torch and of the compiled kernels.
        overrides: ids of the registration's config and their values.
    """
    torch.set_num_threads(threads)
    print("| pair | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    rows = []
    for name, row in measured(Path(data_dir), pairs, FindCorrespondencesd(number, **overrides)):
        rows.append(row)
        print_row(name, row)
    print_row("mean", torch.tensor(rows).mean(0).tolist())


def measured(data_dir: Path, pairs: int, find: FindCorrespondencesd) -> Iterator[tuple[str, list[float]]]:
    """Each pair's name and figures, in the order of the columns."""
    for warmed_up, pair in enumerate(loaded_pairs("breathing", data_dir, pairs)):
        if not warmed_up:
            find(pair)
        keypoints, seconds = timed(find.finder, pair["fixed"], pair["fixed_mask"])
        kept, more_seconds = timed(find, pair)
        true = WarpPoints()(kept["fixed_points"], pair["true_ddf"])
        apart = (kept["moving_points"] - true).norm(dim=1)
        before = (kept["fixed_points"] - true).norm(dim=1).mean()
        share = 100 * (apart <= 2).double().mean()
        figures = map(float, (share, apart.mean(), before))
        yield pair["pair"], [len(keypoints), seconds, len(apart), more_seconds, *figures]


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call gives, and its CPU seconds."""
    begin = time.process_time()
    return call(*arguments), time.process_time() - begin


def print_row(name: str, row: list[float]) -> None:
    """One line of the table."""
    print(f"| {name} | " + " | ".join(f"{value:.4g}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    fire.Fire(main)
