# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import IO, Any

import torch

from monai_reg_ext.apps.bundle_run import BundleRun
from monai_reg_ext.apps.run_folder import LOG, RunFolder
from monai_reg_ext.handlers import RunRecorder

__all__ = ["run_batch"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_batch(
    run: BundleRun,
    pairs: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    lock: IO[bytes],
    workers: int = 1,
    tell: Callable[[str, dict[str, Any]], None] = lambda progress, row: None,
) -> dict[str, Any]:
    """Register the pairs that are not finished, in processes of their own; table and summary grow with every pair.

    A pair that fails, or whose process dies, leaves the others alone; it has no ``metrics.json`` and is tried again by
    the next batch. When this process is killed, its workers end too.

    Args:
        run: how to register.
        pairs: with different names, in the order of the table.
        folder: whose settings are those of ``run``.
        lock: open as long as someone works in the folder; the workers inherit it.
        workers: how many processes; they share this one's number of threads.
        tell: called with ``"3/8"`` and the row after each pair.

    Returns:
        Content of ``summary.json``, over all pairs.
    """
    names = [pair["pair"] for pair in pairs]
    rows = {name: row for name in names if (row := folder.finished(name)) is not None}
    todo = [pair for pair in pairs if pair["pair"] not in rows]
    folder.sweep(pair["pair"] for pair in todo)
    recorder = RunRecorder(folder.path, run.method)
    summary = _write(recorder, rows, names)
    job = {"run": run.arguments(), "output_dir": str(folder.path)}
    with contextlib.closing(_answers(job, todo, folder, lock, min(workers, len(todo)))) as answers:
        for row in answers:
            rows[row["pair"]] = row
            summary = _write(recorder, rows, names)
            tell(f"{len(rows)}/{len(names)}", row)
    return summary


def _write(recorder: RunRecorder, rows: Mapping[str, dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    recorder.rows = [rows[name] for name in names if name in rows]
    recorder.write_table()
    return recorder.write_summary()


def _answers(
    job: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], folder: RunFolder, lock: IO[bytes], workers: int
) -> Iterator[dict[str, Any]]:
    """Rows as they come; a thread per process hands it the next pair."""
    if not pairs:
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    crew = [_Worker(job, folder, lock, threads=max(1, torch.get_num_threads() // workers)) for _ in range(workers)]
    for worker in crew:
        idle.put(worker)

    def register(pair: Mapping[str, Any]) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker.register(pair)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(workers)
    try:
        for done in as_completed([pool.submit(register, pair) for pair in pairs]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in crew:
            worker.kill()
        pool.shutdown()
        for worker in crew:
            worker.close()


class _Worker:
    """The parent's end of a process that registers pairs; it is started with the first pair, and again if it died."""

    def __init__(self, job: Mapping[str, Any], folder: RunFolder, lock: IO[bytes], threads: int) -> None:
        self.job = job
        self.folder = folder
        self.lock = lock
        self.threads = threads
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

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """Wait for the process to end."""
        if self.process is not None:
            self._last_words()

    def _start(self) -> None:
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(self.threads))}
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
