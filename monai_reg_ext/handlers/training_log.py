# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.utils import is_scalar

from monai_reg_ext.data import whole_file

if TYPE_CHECKING:  # tensorboard need not be installed
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TrainingLog"]

logger = logging.getLogger(__name__)


class TrainingLog:
    """Writes how a training goes: ``training.csv`` with a row per epoch, and ``training.json`` at its end.

    A row holds the epoch, the trainer's metrics, the learning rate (that of the first group of parameters), the
    seconds with those of the validation, and the metrics of the validation where there was one. A training that goes on
    from a checkpoint continues the table. The summary holds the number of epochs, the row of the best one by the
    validation's key metric (``null`` without validation), the hours that all of them took, the hardware.

    Attach it to a MONAI trainer, behind the ``ValidationHandler``, in the first of several processes only.

    Args:
        output_dir: folder of the training; made if need be.
        validator: the evaluator that the ``ValidationHandler`` runs.
        facts: further entries of the summary, such as the seed.
        writer: TensorBoard's, if the summary is to be seen there, as a text.
    """

    def __init__(
        self,
        output_dir: str | Path,
        validator: Evaluator | None = None,
        facts: Mapping[str, Any] | None = None,
        writer: SummaryWriter | None = None,
    ) -> None:
        self.output_dir = Path(output_dir).expanduser()
        self.validator = validator
        self.facts = dict(facts or {})
        self.writer = writer
        self.rows: list[dict[str, Any]] = []
        self._validation: dict[str, float] = {}
        self._started = self._learning_rate = math.nan

    @property
    def files(self) -> tuple[Path, Path]:
        """The table and the summary."""
        return self.output_dir / "training.csv", self.output_dir / "training.json"

    def attach(self, engine: Engine) -> None:
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._keep_validation)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._add_row)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.rows = self._read_rows()
        (self.output_dir / "training.json").unlink(missing_ok=True)  # that of the training before

    def _start_epoch(self, engine: Engine) -> None:
        # a training that starts anew, or from an earlier checkpoint, repeats epochs
        self.rows = [row for row in self.rows if row["epoch"] < engine.state.epoch]
        self._validation = {}
        self._started, self._learning_rate = time.perf_counter(), engine.optimizer.param_groups[0]["lr"]

    def _keep_validation(self, evaluator: Engine) -> None:
        self._validation = _scalars(evaluator.state.metrics)

    def _add_row(self, engine: Engine) -> None:
        clock = {"learning_rate": self._learning_rate, "seconds": time.perf_counter() - self._started}
        self.rows.append({"epoch": engine.state.epoch, **_scalars(engine.state.metrics), **clock, **self._validation})
        columns = dict.fromkeys(name for row in self.rows for name in row)
        with whole_file(self.output_dir / "training.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def _finish(self, engine: Engine) -> None:
        summary = self._summary(engine)
        content = json.dumps(summary, indent=4)
        with whole_file(self.output_dir / "training.json") as path:
            path.write_text(content + "\n")
        if self.writer is not None:
            self.writer.add_text("summary", f"```\n{content}\n```", engine.state.epoch)
            self.writer.flush()
        logger.info("training is complete: %s", json.dumps(summary))

    def _summary(self, engine: Engine) -> dict[str, Any]:
        return {
            "epochs": engine.state.epoch,
            "best": self._best_row(),
            "hours": sum(row["seconds"] for row in self.rows) / 3600,
            **self.facts,
            "processes": idist.get_world_size(),
            "hardware": _hardware(engine.state.device),
        }

    def _best_row(self) -> dict[str, Any] | None:
        if self.validator is None:
            return None
        name, best = self.validator.state.key_metric_name, None
        for row in self.rows:
            value = row.get(name, math.nan)
            if math.isfinite(value) and (best is None or self.validator.metric_cmp_fn(value, best[name])):
                best = row
        return best and {name: value if math.isfinite(value) else None for name, value in best.items()}

    def _read_rows(self) -> list[dict[str, Any]]:
        path = self.output_dir / "training.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
        return [{**row, "epoch": int(row["epoch"])} for row in rows]


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if is_scalar(value)}


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
