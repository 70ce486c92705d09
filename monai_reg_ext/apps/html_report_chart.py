# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.ticker import MaxNLocator

from monai_reg_ext.apps.html_report_metric import ReportMetric
from monai_reg_ext.apps.html_report_run import ReportPair

__all__ = ["Chart", "ChartDot", "ChartRow", "distribution_chart"]

# in units of the drawing
WIDTH, LEFT, RIGHT = 420, 56, 14
TOP, ROW_HEIGHT, ROW_GAP, AXIS_HEIGHT = 4, 46, 18, 26
RADII = (4.5, 3.8, 3.2, 2.7, 2.3, 1.9, 1.5)


@dataclass(frozen=True)
class ChartDot:
    """A pair at its value."""

    pair: ReportPair
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class ChartRow:
    """The dots of all pairs, stacked where they would cover each other, and their median."""

    name: str
    top: float
    bottom: float
    median: float
    dots: list[ChartDot]


@dataclass(frozen=True)
class Chart:
    """Drawing of a metric's distribution over the pairs, before and after registration.

    Args:
        metric: what is shown.
        size: width and height of the drawing.
        axis: height of the axis, from the top.
        radius: of a dot.
        ticks: place and label along the axis.
        rows: ``before``, where it was measured, and ``after``.
        moved: the two dots of each pair with both values, and whether the pair got worse.
    """

    metric: ReportMetric
    size: tuple[float, float]
    axis: float
    radius: float
    ticks: list[tuple[float, str]]
    rows: list[ChartRow]
    moved: list[tuple[ChartDot, ChartDot, bool]]

    @property
    def worse(self) -> int:
        """How many pairs are worse than before."""
        return sum(worse for _, _, worse in self.moved)


def distribution_chart(metric: ReportMetric, pairs: Sequence[ReportPair]) -> Chart | None:
    """Where the pairs lie, a dot for each; infinite values are left out.

    Returns:
        The chart, or None when no pair has a finite value.
    """
    columns = {"before": _finite(metric.before, pairs), "after": _finite(metric.name, pairs)}
    if not columns["after"]:
        return None
    columns = {name: values for name, values in columns.items() if values}
    ticks = _ticks([value for values in columns.values() for _, value in values])
    scale = _Scale(ticks[0], ticks[-1])
    radius = _radius([[scale(value) for _, value in values] for values in columns.values()])
    rows = []
    for name, values in columns.items():
        top = TOP + len(rows) * (ROW_HEIGHT + ROW_GAP)
        dots = _dots(values, metric, scale, radius, top + ROW_HEIGHT / 2)
        rows.append(ChartRow(name, top, top + ROW_HEIGHT, scale(median(value for _, value in values)), dots))
    axis = rows[-1].bottom + 4
    return Chart(
        metric=metric,
        size=(WIDTH, axis + AXIS_HEIGHT),
        axis=axis,
        radius=radius,
        ticks=[(scale(tick), f"{tick:g}") for tick in ticks],
        rows=rows,
        moved=_moved(metric, rows),
    )


@dataclass(frozen=True)
class _Scale:
    """From values to places along the axis."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - self.low) / (self.high - self.low), 2)


def _finite(name: str, pairs: Sequence[ReportPair]) -> list[tuple[ReportPair, float]]:
    return [(pair, pair.values[name]) for pair in pairs if math.isfinite(pair.values.get(name, math.nan))]


def _ticks(values: Sequence[float]) -> list[float]:
    """Round values that enclose all."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.1 * abs(low) or 1.0
        low, high = (low - margin if low else 0.0), high + margin
    return MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high).tolist()


def _radius(rows: Sequence[Sequence[float]]) -> float:
    """The largest radius at which the stacks stay in their rows."""

    def highest(radius: float) -> int:
        return max(max(Counter(_stack(x, radius) for x in row).values()) for row in rows)

    return next((radius for radius in RADII if highest(radius) * 2 * radius <= ROW_HEIGHT), RADII[-1])


def _stack(x: float, radius: float) -> int:
    return round(x / (2 * radius))


def _dots(
    values: Sequence[tuple[ReportPair, float]], metric: ReportMetric, scale: _Scale, radius: float, middle: float
) -> list[ChartDot]:
    """Dots at their exact values, those of one stack evenly above and below the middle."""
    heights = Counter(_stack(scale(value), radius) for _, value in values)
    seen: Counter[int] = Counter()
    dots = []
    for pair, value in sorted(values, key=lambda item: item[1]):
        x = scale(value)
        stack = _stack(x, radius)
        count = heights[stack]
        step = min(2 * radius, (ROW_HEIGHT - 2 * radius) / max(count - 1, 1))
        y = round(middle + step * (seen[stack] - (count - 1) / 2), 2)
        seen[stack] += 1
        dots.append(ChartDot(pair, x, y, metric.text(value)))
    return dots


def _moved(metric: ReportMetric, rows: Sequence[ChartRow]) -> list[tuple[ChartDot, ChartDot, bool]]:
    if len(rows) < 2:
        return []
    before, after = ({dot.pair.number: dot for dot in row.dots} for row in rows)
    both = [(dot, after[number]) for number, dot in before.items() if number in after]
    return [(first, second, _is_worse(metric, first.pair)) for first, second in both]


def _is_worse(metric: ReportMetric, pair: ReportPair) -> bool:
    return metric.is_worse(pair.values[metric.name], than=pair.values[metric.before])
