# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The CSV of ``gauss_newton_iterations.py`` and the tables that sum it up."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gauss_newton_methods import ADAM

__all__ = ["COLUMNS", "Row", "against_adam", "append_rows", "falling", "read_rows", "summary"]

TEXT = ("pair", "method")
VALUES = ("dice", "sdlogj", "folding_percent", "energy", "cpu_seconds")
COLUMNS = (*TEXT, "labels_dice", "iteration", *VALUES)
SHOWN = (0, 5, 10, 25)

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV of ours; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value if key in TEXT else float(value) for key, value in row.items() if value} for row in rows]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows, below a head if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Means over the pairs after some iterations."""
    yield "| method | iterations | Dice | SDlogJ | folding % | energy | CPU s |"
    yield "|---|---|---|---|---|---|---|"
    for method in _methods(rows):
        last = max(row["iteration"] for row in rows if row["method"] == method)
        for iteration in (*(shown for shown in SHOWN if shown < last), last):
            means = [np.mean(_values(rows, method, iteration, column)) for column in VALUES]
            cells = [form.format(mean) for form, mean in zip(("{:.2f}", *["{:.3g}"] * 4), means, strict=True)]
            yield f"| {method} | {iteration:g} | {' | '.join(cells)} |"


def against_adam(rows: Sequence[Row]) -> Iterator[str]:
    """Mean Dice of every method beside Adam's after as many iterations, and after at least as many seconds."""
    others = [method for method in _methods(rows) if method != ADAM]
    if ADAM not in _methods(rows):
        return
    yield "| method | iterations | Dice | Adam, iterations | better on | Adam, seconds | better on |"
    yield "|---|---|---|---|---|---|---|"
    for method in others:
        for iteration in (1, 2, 3, 5, 7, 10):
            dice = _values(rows, method, iteration, "dice")
            if len(dice) == 0:
                continue
            equal = _values(rows, ADAM, iteration, "dice"), _adam_in_time(rows, method, iteration)
            cells = [f"{of_adam.mean():.2f} | {(dice > of_adam).sum()} of {len(dice)}" for of_adam in equal]
            yield f"| {method} | {iteration} | {dice.mean():.2f} | {' | '.join(cells)} |"


def falling(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[str]:
    """On how many pairs the energy fell in every step, and its largest rise in one."""
    yield "| coupled | energy falls in every step | largest rise in a step, % | energy in the end, % of the first |"
    yield "|---|---|---|---|"
    for method in methods:
        of_pairs = [[row["energy"] for row in of_pair] for of_pair in _by_pair(rows, method)]
        if of_pairs:
            energies = np.array(of_pairs)
            changes = 100 * (energies[:, 1:] / energies[:, :-1] - 1)
            pairs = f"{(changes < 0).all(1).sum()} of {len(energies)} pairs"
            left = 100 * np.mean(energies[:, -1] / energies[:, 0])
            yield f"| {method} | {pairs} | {max(changes.max(), 0):.2g} | {left:.1f} |"


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows if "dice" in row))


def _by_pair(rows: Sequence[Row], method: str) -> list[list[Row]]:
    """A method's rows in the order of its iterations, pair by pair."""
    of_pairs: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] == method:
            of_pairs.setdefault(row["pair"], []).append(row)
    return [sorted(of_pair, key=lambda row: row["iteration"]) for of_pair in of_pairs.values()]


def _values(rows: Sequence[Row], method: str, iteration: float, column: str) -> np.ndarray:
    return np.array(
        [row[column] for of_pair in _by_pair(rows, method) for row in of_pair if row["iteration"] == iteration]
    )


def _adam_in_time(rows: Sequence[Row], method: str, iteration: int) -> np.ndarray:
    """For every pair the best Dice that Adam had until its first field that took as long as the other method's."""
    best = []
    adams = {of_pair[0]["pair"]: of_pair for of_pair in _by_pair(rows, ADAM)}
    for of_pair in _by_pair(rows, method):
        seconds = next(row["cpu_seconds"] for row in of_pair if row["iteration"] == iteration)
        of_adam = adams[of_pair[0]["pair"]]
        taken = sum(row["cpu_seconds"] < seconds for row in of_adam) + 1
        best.append(max(row["dice"] for row in of_adam[:taken]))
    return np.array(best)
