# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from monai_reg_ext.data import whole_file
from monai_reg_ext.metrics import aggregate_cases

__all__ = ["RunRecorder"]

logger = logging.getLogger(__name__)

METRICS = (
    *("dice", "dice_before", "hd95", "sdlogj", "folding_percent", "tre_mm", "tre_mm_before"),
    "inverse_consistency_mm",
)
MEASURED_ON_DEMAND = ("tre_mm_snapped",)
COLUMNS = ("pair", *METRICS, "seconds", "error")
QUANTILES = {"dice30": "dice", "hd9530": "hd95", "sdlogj30": "sdlogj", "tre30_mm": "tre_mm"}


class RunRecorder:
    """Writes what a run has measured: ``metrics.csv`` with a row per pair, and ``summary.json``.

    The table grows with every pair, and both files are replaced as a whole. Attach it behind the metric handlers; their
    values that are none of ours have columns too, but stay out of the summary.
    ``seconds`` is the network's time for a pair, without reading and writing files.

    Of several processes that take turns with the pairs, the first one writes: its own rows as they come, and at the end
    those of all, in the order of the pairs.

    Args:
        output_dir: folder of the run; made if need be.
        method: name of the method, for the summary.
    """

    def __init__(self, output_dir: str | Path, method: str) -> None:
        self.output_dir = Path(output_dir).expanduser()
        self.method = method
        self.rows: list[dict[str, Any]] = []
        self._started = self._seconds = math.nan

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start_run)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_clock)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_rows)
        engine.add_event_handler(Events.COMPLETED, self.finish_run)

    @property
    def files(self) -> tuple[Path, Path]:
        """The table and the summary."""
        return self.output_dir / "metrics.csv", self.output_dir / "summary.json"

    @property
    def _writes(self) -> bool:
        return idist.get_rank() == 0

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of the pairs that failed; in the end those of all processes."""
        return [row for row in self.rows if row["error"]]

    def exit_on_failure(self) -> None:
        """End the first process with a message and status 1 when a pair failed; the last step of a bundle's run."""
        if self.failed and self._writes:  # the others must not end it while it writes
            raise SystemExit(f"{len(self.failed)} of {len(self.rows)} pairs failed, see {self.output_dir}/metrics.csv")

    def summary(self) -> dict[str, Any]:
        """The run in figures: means over the pairs, their spread, and Learn2Reg's quantiles; null without values.

        ``folding_cases`` is the number of pairs whose field folds anywhere.
        """
        metrics = (*METRICS, *(name for name in MEASURED_ON_DEMAND if any(name in row for row in self.rows)))
        means = {name: self._statistic(name, "mean") for name in (*metrics, "seconds")}
        spreads = {f"{name}_std": self._statistic(name, "std") for name in metrics}
        foldings = [row["folding_percent"] > 0 for row in self.rows if "folding_percent" in row]
        quantiles = {key: self._statistic(name, "30") for key, name in QUANTILES.items()}
        return {
            "method": self.method,
            "pairs": len(self.rows),
            "failed": len(self.failed),
            "seconds_per_pair": means.pop("seconds"),
            **means,
            **spreads,
            **quantiles,
            "folding_cases": sum(foldings) if foldings else None,
        }

    def _statistic(self, name: str, statistic: str) -> float | None:
        # the quantile's side is the metric's, everything else does not depend on it
        side = "tre" if name.startswith(("tre", "sdlogj")) else "dice"
        value = aggregate_cases([row.get(name, math.nan) for row in self.rows], side)[statistic]
        return value if math.isfinite(value) else None

    def start_run(self, engine: Engine) -> None:
        """Begin a table without rows."""
        self.rows.clear()
        if not self._writes:
            return
        self.write_table()
        (self.output_dir / "summary.json").unlink(missing_ok=True)  # an earlier run's does not belong to this table

    def _start_clock(self, engine: Engine) -> None:
        self._seconds, self._started = math.nan, time.perf_counter()

    def _stop_clock(self, engine: Engine) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._started

    def _add_rows(self, engine: Engine) -> None:
        pairs = engine.state.output
        for item, output in zip(engine.state.batch, pairs, strict=True):
            row = {"pair": item["pair"], **output.get("metrics", {}), "error": output.get("error", "")}
            self.rows.append({**row, "seconds": self._seconds / len(pairs)})
            logger.info("%s: %s", row["pair"], _in_words(self.rows[-1]))
        if self._writes:
            self.write_table()

    def write_table(self) -> None:
        """Write ``metrics.csv`` from the rows there are, whole."""
        columns = dict.fromkeys([*COLUMNS, *(name for row in self.rows for name in row)])
        with whole_file(self.output_dir / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(
                {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
                for row in self.rows
            )

    def write_summary(self) -> dict[str, Any]:
        """Write ``summary.json`` from the rows there are, whole, and return its content."""
        summary = self.summary()
        with whole_file(self.output_dir / "summary.json") as path:
            path.write_text(json.dumps(summary, indent=4) + "\n")
        return summary

    def finish_run(self, engine: Engine) -> None:
        """Write the rows of all processes and their summary, and tell the means."""
        if idist.get_world_size() > 1:
            turns = itertools.zip_longest(*idist.all_gather(self.rows))
            self.rows = [row for turn in turns for row in turn if row is not None]
            if not self._writes:
                return
            self.write_table()
        summary = self.write_summary()
        means = {key: value for key, value in summary.items() if key in METRICS and value is not None}
        logger.info(
            "%d pairs, %d failed, %.2f s each: %s; results in %s",
            summary["pairs"],
            summary["failed"],
            summary["seconds_per_pair"] or math.nan,
            _in_words(means),
            self.output_dir,
        )


def _in_words(values: dict[str, Any]) -> str:
    if values.get("error"):
        return f"failed: {values['error']}"
    return ", ".join(f"{name} {values[name]:.4g}" for name in (*METRICS, "seconds") if name in values)
