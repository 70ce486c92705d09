# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from monai_reg_ext.apps.html_report_chart import distribution_chart
from monai_reg_ext.apps.html_report_metric import ReportMetric
from monai_reg_ext.apps.html_report_pictures import pictures_of, ranking_metric
from monai_reg_ext.apps.html_report_run import ReportPair, ReportRun, read_run
from monai_reg_ext.apps.html_report_settings import settings_tables
from monai_reg_ext.data import whole_file
from monai_reg_ext.metrics import aggregate_cases

__all__ = ["write_html_report"]


def write_html_report(output_dir: str | os.PathLike, pictures: int = 20) -> Path:
    """Write ``report.html`` into the folder of a run: one file that opens in any browser, without network.

    It has the means, the distributions before and after registration, a table of all pairs that a click on a column
    sorts, the pictures of the worst pairs, and the settings. The address ``report.html#sort=dice`` opens it sorted by
    that column of ``metrics.csv``, ``#sort=-dice`` from the other end.

    Args:
        output_dir: folder of a run, with ``metrics.csv``, and where they are there ``summary.json``, ``settings.json``
            and ``<pair>/report.png``.
        pictures: how many pictures are part of the file, the worst pairs first, as long as they stay below 10 MB; the
            others are links to their files.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: when no run has written its table there.
        ValueError: when the table holds no pairs, a JSON file no dictionary, or ``pictures`` is negative.
        OSError: when the page cannot be written.
    """
    if pictures < 0:
        raise ValueError(f"pictures must be 0 or more, got {pictures}. Give 0 for a page with links alone.")
    page = _render(read_run(output_dir), pictures)
    path = Path(output_dir).expanduser() / "report.html"
    with whole_file(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


@dataclass(frozen=True)
class _Figure:
    """A metric over the pairs that have a value; mean and spread are None where one of them is infinite."""

    metric: ReportMetric
    count: int
    mean: float | None
    spread: float | None
    median: float
    mean_before: float | None


def _render(run: ReportRun, pictures: int) -> str:
    environment = Environment(
        loader=PackageLoader("monai_reg_ext", "apps"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_javascript"] = json.dumps
    script = environment.loader.get_source(environment, "html_report.js")[0]
    after = [metric for metric in run.metrics if not metric.is_before]
    charts = [distribution_chart(metric, run.pairs) for metric in after]
    return environment.get_template("html_report.html").render(
        run=run,
        name=run.folder.name,
        written=datetime.now().astimezone(),
        figures=[_figure(metric, run.pairs) for metric in after],
        charts=[chart for chart in charts if chart],
        ranking=ranking_metric(run),
        pictures=pictures_of(run, pictures),
        tables=settings_tables(run.settings),
        script=Markup(script),
        script_digest=_digest(script),
    )


def _digest(script: str) -> str:
    """What names the one script that the page's policy lets run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _figure(metric: ReportMetric, pairs: Sequence[ReportPair]) -> _Figure:
    values, before = ([p.values[name] for p in pairs if name in p.values] for name in (metric.name, metric.before))
    mean, spread = _mean_and_spread(values)
    return _Figure(metric, len(values), mean, spread, median(values), mean_before=_mean_and_spread(before)[0])


def _mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values or not all(map(math.isfinite, values)):
        return None, None
    statistics = aggregate_cases(values, "dice")  # the name of the metric only decides on a quantile
    return statistics["mean"], statistics["std"]
