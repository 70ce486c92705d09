# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""What ``speed.py`` measured, as Markdown tables and as a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from speed_meter import Cost, median

__all__ = ["exponent", "plot", "tables"]

MIB = 1 << 20
QUANTITIES: dict[str, Callable[[Cost], float | None]] = {
    "wall s": lambda cost: cost.wall,
    "CPU s": lambda cost: cost.cpu,
    "peak MiB": lambda cost: None if cost.peak is None else cost.peak / MIB,
}


def tables(results: dict[str, Any]) -> str:
    """Markdown of all parts that were measured, the machine first."""
    sections = {
        "machine": _machine,
        "first": _first,
        "whole": _whole,
        "widths": _widths,
        "endurance": _endurance,
        "agreement": _agreement,
        "gpu": _gpu,
    }
    lines = [line for part, section in sections.items() if part in results for line in section(results)]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Wall time and peak memory of whole calls against voxels, of the search alone against displacements."""
    titles = {"voxels": "whole registration", "displacements": "search alone"}
    columns = {x: series for x, series in _series(results).items() if series}
    if not columns:
        return
    figure, axes = plt.subplots(2, len(columns), figsize=(6.5 * len(columns), 9), squeeze=False, layout="constrained")
    for column, (x, series) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(titles[x])
        for axis, (quantity, label) in zip(
            column, (("wall s", "wall time in s"), ("peak MiB", "peak memory above the inputs in MiB")), strict=True
        ):
            _curves(axis, series, quantity)
            axis.set(xlabel=f"number of {x}", ylabel=label)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Slope *e* of the least squares line ``log y = e log x + c``; ``None`` for fewer than three points or a zero."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 2 and min(y) > 0 else None


def _machine(results: dict[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{name}: {value}" for name, value in results["machine"].items()) + ".\n"


def _first(results: dict[str, Any]) -> Iterator[str]:
    first = results["first"]
    yield (
        f"A registration of {first['size']} takes {first['compiling']:.3g} s as the first one ever (compiles the "
        f"kernels and stores them), {first['loading']:.3g} s as the first one of a later process (loads them), "
        f"{first['warm']:.3g} s from then on.\n"
    )


def _whole(results: dict[str, Any]) -> Iterator[str]:
    costs = _medians(results["whole"], "size", "stage", "method")
    yield "### Whole registration and its stages\n"
    columns = [name for quantity in QUANTITIES for name in (f"{quantity} ours", f"{quantity} convexAdam", "ratio")]
    yield from _head("size", "stage", *columns, "GB at least", "of copy bandwidth")
    for size, stage in dict.fromkeys(key[:2] for key in costs):
        ours, theirs = (costs.get((size, stage, method)) for method in ("ours", "convexAdam"))
        cells = [cell for quantity in QUANTITIES for cell in _compared(quantity, ours, theirs)]
        least = results["least_bytes"][size][stage]
        fraction = least / results["bandwidth"] / ours.wall if ours else None
        yield _row(size, stage, *cells, _number(least / 1e9), _number(fraction))
    yield from _growth(results, "voxels")


def _compared(quantity: str, ours: Cost | None, theirs: Cost | None) -> list[str]:
    a, b = (None if cost is None else QUANTITIES[quantity](cost) for cost in (ours, theirs))
    return [_number(a), _number(b), _number(b / a if a and b is not None else None)]


def _widths(results: dict[str, Any]) -> Iterator[str]:
    rows = results["widths"]
    yield f"### Search alone, both directions, {rows[0]['size']}, cells of {rows[0]['spacing']} voxels\n"
    yield from _head("half-width", "displacements", "method", *QUANTITIES, "wall ms per displacement")
    for (width, labels, curve), cost in _medians(rows, "half_width", "displacements", "curve").items():
        values = [_number(value(cost)) for value in QUANTITIES.values()]
        yield _row(str(width), str(labels), curve, *values, _number(1000 * cost.wall / labels))
    yield from _growth(results, "displacements")


def _growth(results: dict[str, Any], x: str) -> list[str]:
    """The fitted powers as a list, blank lines around it."""
    lines = [""]
    for curve, (counts, costs) in _series(results)[x].items():
        time, memory = (exponent(counts, [QUANTITIES[name](cost) for cost in costs]) for name in ("wall s", "peak MiB"))
        if time is not None and memory is not None:
            lines.append(f"- {curve}: time ~ {x}^{time:.2f}, peak memory ~ {x}^{memory:.2f}")
    return [*lines, ""] if len(lines) > 1 else lines


def _endurance(results: dict[str, Any]) -> Iterator[str]:
    part = results["endurance"]
    resident = np.array(part["resident"]) / MIB
    third, middle = resident[2], resident[len(resident) // 2]
    yield f"### {len(resident)} registrations of {part['size']} in one process\n"
    yield (
        f"Resident MiB: {resident[0]:.2f} after the first, {third:.2f} after the third, {middle:.2f} half-way, "
        f"{resident[-1]:.2f} after the last, at most {resident[2:].max() - third:.2f} above the third. "
        f"Held in the end: {part['held'] / 1024:+.0f} KiB.\n"
    )


def _agreement(results: dict[str, Any]) -> Iterator[str]:
    part = results["agreement"]
    yield f"### Differences from one and the same registration, {part['size']}\n"
    yield from _head(
        "compared with it",
        "% of control points with equal coarse field",
        "largest coarse difference, cells",
        "final field: median, voxels",
        "99 %",
        "99.9 %",
        "bit-equal",
    )
    for row in part["rows"]:
        differences = [f"{row[name]:.2g}" for name in ("coarse_max", "median", "99 %", "99.9 %")]
        yield _row(row["what"], f"{100 * row['equal']:.5g}", *differences, "yes" if row["bit_equal"] else "no")
    yield ""


def _gpu(results: dict[str, Any]) -> Iterator[str]:
    part = results["gpu"]
    yield "### GPU\n"
    if part["device"] is None:
        yield "There is no GPU on this machine.\n"
        return
    yield f"{part['device']}; warm whole call, with the copy of the field to the host.\n"
    yield from _head("size", "method", "wall s", "peak MiB allocated above the inputs")
    for (size, method), cost in _medians(part["rows"], "size", "method").items():
        yield _row(size, method, *(_number(QUANTITIES[quantity](cost)) for quantity in ("wall s", "peak MiB")))
    yield ""


def _series(results: dict[str, Any]) -> dict[str, dict[str, tuple[list[int], list[Cost]]]]:
    """For both kinds of x the curves: name to its counts and their costs."""
    whole_calls = [row for row in results.get("whole", []) if row["stage"] == "whole call"]
    kinds = {"voxels": ("method", whole_calls), "displacements": ("curve", results.get("widths", []))}
    series: dict[str, dict[str, tuple[list[int], list[Cost]]]] = {x: {} for x in kinds}
    for x, (name, rows) in kinds.items():
        for (curve, count), cost in sorted(_medians(rows, name, x).items(), key=lambda item: item[0][1]):
            counts, costs = series[x].setdefault(curve, ([], []))
            counts.append(count)
            costs.append(cost)
    return series


def _curves(axis: Axes, series: dict[str, tuple[list[int], list[Cost]]], quantity: str) -> None:
    for curve, (counts, costs) in series.items():
        values = [QUANTITIES[quantity](cost) for cost in costs]
        fitted = exponent(counts, values)
        label = curve if fitted is None else f"{curve}: exponent {fitted:.2f}"
        axis.loglog(counts, values, "ks--" if curve == "convexAdam" else "o-", label=label)
    axis.grid(which="both", alpha=0.3)
    axis.legend()


def _medians(rows: list[dict[str, Any]], *names: str) -> dict[tuple, Cost]:
    """Median cost of the rows that share the values of these columns, in the order of their first appearance."""
    groups: dict[tuple, list[Cost]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row["cost"])
    return {key: median(costs) for key, costs in groups.items()}


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield "|---" * len(names) + "|"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
