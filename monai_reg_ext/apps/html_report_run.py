# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_reg_ext.apps.html_report_metric import ReportMetric, report_metric

__all__ = ["ReportPair", "ReportRun", "read_run"]


@dataclass(frozen=True)
class ReportPair:
    """A row of ``metrics.csv``.

    Args:
        number: place in the run, from 1.
        name: name of the pair.
        values: what was measured, by column; never NaN.
        error: why the pair failed, or empty.
        picture: its ``report.png``, where there is one.
    """

    number: int
    name: str
    values: Mapping[str, float]
    error: str
    picture: Path | None


@dataclass(frozen=True)
class ReportRun:
    """What a run has left in its folder.

    Args:
        folder: the run's ``output_dir``, absolute.
        pairs: in the order of the run.
        metrics: the columns with at least one value, in the order of a pair's page, each behind the same measure before
            registration.
        summary: content of ``summary.json``; empty for a run that has not come to its end.
        settings: content of ``settings.json``; empty where there is none.
    """

    folder: Path
    pairs: list[ReportPair]
    metrics: list[ReportMetric]
    summary: dict[str, Any]
    settings: dict[str, Any]

    @property
    def failed(self) -> list[ReportPair]:
        return [pair for pair in self.pairs if pair.error]

    @property
    def method(self) -> str:
        return str(self.summary.get("method") or self.settings.get("method") or "")


def read_run(output_dir: str | os.PathLike) -> ReportRun:
    """Read the folder of a run.

    Raises:
        FileNotFoundError: when no run has written its table there.
        ValueError: when the table holds no pairs, or a JSON file no dictionary.
    """
    folder = Path(output_dir).expanduser().resolve()
    rows = _read_table(folder / "metrics.csv")
    pairs = [_pair(folder, number, row) for number, row in enumerate(rows, start=1)]
    summary, settings = (_read_dictionary(folder / name) for name in ("summary.json", "settings.json"))
    return ReportRun(folder, pairs, _metrics(pairs), summary, settings)


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"a report needs the results of a run, got no {path}. Give the run's output_dir.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, restval=""))
    if not rows or "pair" not in rows[0]:
        raise ValueError(f"a report needs at least one row with a pair, {path} has none. Wait until a pair is done.")
    return rows


def _read_dictionary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must hold JSON, got: {error}. Repair or remove it.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(content).__name__}. Repair or remove it.")
    return content


def _pair(folder: Path, number: int, row: Mapping[str, str]) -> ReportPair:
    numbers = {name: _number(text) for name, text in row.items() if name not in ("pair", "error", None)}
    values = {name: value for name, value in numbers.items() if not math.isnan(value)}
    error = row.get("error") or ""
    # a picture beside a failed pair is an earlier run's
    return ReportPair(number, row["pair"], values, error, None if error else _picture(folder, row["pair"]))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _picture(folder: Path, name: str) -> Path | None:
    path = Path(os.path.normpath(folder / name / "report.png"))
    return path if path.is_relative_to(folder) and path.is_file() else None


def _metrics(pairs: list[ReportPair]) -> list[ReportMetric]:
    names = dict.fromkeys(name for pair in pairs for name in pair.values)
    metrics = sorted(map(report_metric, names), key=lambda metric: metric.rank)
    ordered = dict.fromkeys(name for metric in metrics for name in (metric.before, metric.name))
    return [report_metric(name) for name in ordered if name in names]
