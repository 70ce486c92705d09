# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from monai_reg_ext.apps.batch_worker import pair_row
from monai_reg_ext.data.error_line import error_line

__all__ = ["check_cluster_installed", "cluster_rows"]

dask, _ = optional_import("dask")
distributed, _ = optional_import("distributed")

PATIENCE = 30  # seconds for a scheduler to answer
ONE_AT_A_TIME = threading.Lock()  # a process may have several threads, and seeds are the process's


def check_cluster_installed(option: str) -> None:
    """Make sure before any work is done that Dask is there.

    Raises:
        ModuleNotFoundError: when it is not.
    """
    if find_spec("distributed") is None:
        raise ModuleNotFoundError(
            f"{option} needs Dask, which is not installed: pip install 'monai-reg-ext[cluster]'. "
            "--workers 1 does without."
        )


def cluster_rows(
    job: Mapping[str, Any],
    pairs: Sequence[Mapping[str, Any]],
    workers: int = 1,
    scheduler: str | None = None,
    retries: int = 2,
    threads: int = 1,
    log: Path | None = None,
    register: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = pair_row,
) -> Iterator[dict[str, Any]]:
    """Register pairs on a Dask cluster; their rows as they come.

    A pair whose worker dies is tried again by another one, and at last alone on the cluster, so that it does not suffer
    from its neighbours. Workers that died are replaced.

    Args:
        job: how to register, see :py:func:`monai_reg_ext.apps.batch_worker.pair_row`.
        pairs: with different names, and paths that the workers see too.
        workers: processes of a cluster that this call starts on this computer and ends with its generator.
        scheduler: address of a running cluster in its place, e.g. ``tcp://host:8786``.
        retries: how often a pair is tried again when its worker dies; a running cluster has its own limit,
            ``distributed.scheduler.allowed-failures``.
        threads: of each process that this call starts.
        log: file that gets what these processes say.
        register: makes a pair's row.

    Raises:
        OSError: when no scheduler answers there.
    """
    with _client(scheduler, workers, retries, threads, log) as client:
        # in one go: a scheduler that sees how many there are keeps them until a worker is free
        tasks = client.map(functools.partial(_register_alone, register, job), pairs, pure=False)
        pair_of = dict(zip((task.key for task in tasks), pairs, strict=True))
        suspects = []
        for task in distributed.as_completed(tasks):
            pair = pair_of[task.key]
            row = _row(task, pair["pair"])
            if row is None:
                suspects.append(pair)
            else:
                yield row
            task.release()
        for pair in suspects:  # one by one: some may have waited behind the one over which workers died
            task = client.submit(_register_alone, register, job, pair, pure=False)
            died = "workers died over it, also when it was alone (out of memory?). Their log tells more."
            yield _row(task, pair["pair"]) or {"pair": pair["pair"], "error": died}


def _register_alone(register: Callable, job: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    with ONE_AT_A_TIME:
        return register(job, pair)


def _row(task: Any, pair: str) -> dict[str, Any] | None:
    """The pair's row, ``None`` when too many workers died."""
    try:
        return task.result()
    except distributed.KilledWorker:
        return None
    except Exception as error:
        return {"pair": pair, "error": error_line(error)}


@contextlib.contextmanager
def _client(scheduler: str | None, workers: int, retries: int, threads: int, log: Path | None) -> Iterator[Any]:
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout=PATIENCE)
        except OSError:
            raise OSError(
                f"no Dask scheduler answers at {scheduler}. Is it running, and reachable from here?"
            ) from None
        with client:
            yield client
        return
    settings = {"distributed.scheduler.allowed-failures": retries, "distributed.scheduler.worker-saturation": 1.0}
    places = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": ":0"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(**places, silence_logs=logging.CRITICAL) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(_set_up(threads, log))
        yield client


def _set_up(threads: int, log: Path | None) -> Any:
    """What every process on this computer does first, also one that takes the place of another."""

    class SetUp(distributed.WorkerPlugin):
        name = "monai_reg_ext"

        def setup(self, worker: Any) -> None:
            import torch

            torch.set_num_threads(threads)
            warnings.filterwarnings("ignore")
            if log is not None:
                with open(log, "ab") as file:  # whatever libraries print
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)

    return SetUp()
