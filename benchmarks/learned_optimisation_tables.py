# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""CSV files, tables and the plot of ``learned_optimisation.py``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_reg_ext.data import whole_file
from monai_reg_ext.metrics import aggregate_cases

__all__ = ["append_rows", "draw_convergence", "read_rows", "summary"]

TEXT = ("data_set", "pair", "method")
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV of ours; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value if key in TEXT else float(value) for key, value in row.items()} for row in rows]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows of the same columns, below a head if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def summary(rows: Sequence[Row], data_set: str) -> Iterator[str]:
    """A table of one data set, a line for every method."""
    rows = [row for row in rows if row["data_set"] == data_set]
    yield f"{data_set}, {len({row['pair'] for row in rows})} pairs"
    yield "| method | TRE mm | TRE30 mm | TRE snapped mm | folding cases | SDlogJ | CPU s | iterations |"
    yield "|---|---|---|---|---|---|---|---|"
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        tre, snapped, sdlogj, seconds, iterations = (
            np.array([row[name] for row in of_method])
            for name in ("tre_mm", "tre_mm_snapped", "sdlogj", "cpu_seconds", "iterations")
        )
        folding = sum(row["folding_percent"] > 0 for row in of_method)
        cells = [f"{tre.mean():.2f}", f"{aggregate_cases(tre, 'tre')['30']:.2f}", f"{snapped.mean():.2f}"]
        cells += [f"{folding} of {len(of_method)}", f"{sdlogj.mean():.3f}", f"{seconds.mean():.1f}"]
        yield f"| {method} | {' | '.join(cells)} | {iterations.mean():g} |"


def draw_convergence(rows: Sequence[Row], path: Path) -> None:
    """Error and energy, means over the pairs, against iterations and seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    measures = (("tre_mm", "TRE, mm"), ("energy", "energy"))
    for across, (reach, unit) in enumerate((("iterations", "iterations"), ("cpu_seconds", "CPU seconds"))):
        for down, (measure, name) in enumerate(measures):
            for method in dict.fromkeys(row["method"] for row in rows):
                x, y = (_means(rows, method, column) for column in (reach, measure))
                axes[down][across].plot(x, y, marker=".", label=method)
            axes[down][0].set_ylabel(name)
        axes[1][across].set_xlabel(unit)
    axes[0][0].legend()
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def _means(rows: Sequence[Row], method: str, column: str) -> list[float]:
    """One value for each iteration."""
    of_iterations: dict[float, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            of_iterations.setdefault(row["iterations"], []).append(row[column])
    return [float(np.mean(of_iterations[iteration])) for iteration in sorted(of_iterations)]
