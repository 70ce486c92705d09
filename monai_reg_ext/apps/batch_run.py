# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import torch

from monai_reg_ext.apps.batch_cluster import cluster_rows
from monai_reg_ext.apps.bundle_run import BundleRun, with_absolute_paths
from monai_reg_ext.apps.run_folder import LOG, RunFolder
from monai_reg_ext.handlers import RunRecorder

__all__ = ["run_batch"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
TABLES = 1000  # so often the table of a long batch is written, and one of fewer pairs with every pair


def run_batch(
    run: BundleRun,
    pairs: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    lock: IO[bytes],
    workers: int = 1,
    tell: Callable[[str, dict[str, Any]], None] = lambda progress, row: None,
    scheduler: str | None = None,
    retries: int = 2,
) -> dict[str, Any]:
    """Register the pairs that are not finished, in other processes; table and summary grow with the pairs.

    A pair that fails, or over which processes die, leaves the others alone; it has no ``metrics.json`` and is tried
    again by the next batch. When this process is killed, those that it has started end too.

    Args:
        run: how to register.
        pairs: with different names, in the order of the table.
        folder: whose settings are those of ``run``.
        lock: open as long as someone works in the folder; a single worker inherits it.
        workers: how many processes; they share this one's number of threads. More than one are a Dask cluster.
        tell: called with ``"3/8"`` and the row after each pair.
        scheduler: address of a Dask cluster that takes the place of processes on this computer.
        retries: how often a pair is tried again when its process dies, on a cluster.

    Returns:
        Content of ``summary.json``, over all pairs.
    """
    names = [pair["pair"] for pair in pairs]
    rows = {name: row for name in names if (row := folder.finished(name)) is not None}
    todo = [pair for pair in pairs if pair["pair"] not in rows]
    folder.sweep(pair["pair"] for pair in todo)
    recorder = RunRecorder(folder.path, run.method)
    _write(recorder, rows, names)
    seldom = 1 + len(names) // TABLES
    with contextlib.closing(_answers(run, todo, folder, lock, workers, scheduler, retries)) as answers:
        for row in answers:
            rows[row["pair"]] = row
            if len(rows) % seldom == 0:
                _write(recorder, rows, names)
            tell(f"{len(rows)}/{len(names)}", row)
    folder.sweep(pair["pair"] for pair in todo)
    return _write(recorder, rows, names)


def _write(recorder: RunRecorder, rows: Mapping[str, dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    recorder.rows = [rows[name] for name in names if name in rows]
    recorder.write_table()
    return recorder.write_summary()


def _answers(
    run: BundleRun,
    pairs: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    lock: IO[bytes],
    workers: int,
    scheduler: str | None,
    retries: int,
) -> Iterator[dict[str, Any]]:
    """Rows as they come."""
    path, crew = folder.path.absolute(), min(workers, len(pairs))
    job = {"run": run.arguments(), "output_dir": str(path)}
    if not pairs or (scheduler is None and crew == 1):
        return _rows_of_a_process(job, pairs, folder, lock)
    threads = max(1, torch.get_num_threads() // crew)
    pairs = [with_absolute_paths(pair) for pair in pairs]
    return cluster_rows(job, pairs, crew, scheduler, retries, threads, path / LOG)


def _rows_of_a_process(
    job: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], folder: RunFolder, lock: IO[bytes]
) -> Iterator[dict[str, Any]]:
    worker = _Worker(job, folder, lock)
    try:
        for pair in pairs:
            yield worker.register(pair)
    finally:
        worker.close()


class _Worker:
    """The parent's end of a process that registers pairs; it is started with the first pair, and again if it died."""

    def __init__(self, job: Mapping[str, Any], folder: RunFolder, lock: IO[bytes]) -> None:
        self.job = job
        self.folder = folder
        self.lock = lock
        self.process: subprocess.Popen | None = None

    def register(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """The pair's row; one with an ``error`` when the process dies over it."""
        if self.process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError):
            self._send(pair)
        answer = self.process.stdout.readline()
        if answer:
            return json.loads(answer)
        return {"pair": pair["pair"], "error": f"the process {self._last_words()}; see {self.folder.path / LOG}."}

    def close(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self._last_words()

    def _start(self) -> None:
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(torch.get_num_threads()))}
        with (self.folder.path / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monai_reg_ext.apps.batch_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                pass_fds=(self.lock.fileno(),) if os.name == "posix" else (),
            )
        with contextlib.suppress(BrokenPipeError):
            self._send(self.job)

    def _send(self, message: Mapping[str, Any]) -> None:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _last_words(self) -> str:
        """How the process ended; there is none afterwards."""
        process, self.process = self.process, None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait()
        process.stdout.close()
        if status < 0:
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            return f"was ended by {signal.Signals(-status).name}{hint}"
        return f"ended with status {status}"
