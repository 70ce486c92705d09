# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from monai_reg_ext.apps import batch_cluster
from monai_reg_ext.apps.batch_cluster import check_cluster_installed, cluster_rows
from monai_reg_ext.apps.commands import batch

distributed = pytest.importorskip("distributed")
PAIRS = [{"pair": f"p{number}"} for number in range(6)]


def worker_program():
    """What stands for a registration: a function that processes get by value, since they do not know this file."""

    def register(job, pair):
        import os
        import signal
        from pathlib import Path

        import torch

        folder, name = Path(job["folder"]), pair["pair"]
        tries = len(list(folder.glob(f"{name}_*")))
        (folder / f"{name}_{tries}").write_text(str(os.getpid()))
        print(f"{name} is here")
        if tries < job["deaths"].get(name, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if name in job["errors"]:
            raise ValueError(f"{name} is bad.")
        return {"pair": name, "error": "", "threads": torch.get_num_threads(), "process": os.getpid()}

    return register


def tries(folder: Path, pair: str) -> int:
    return len(list(folder.glob(f"{pair}_*")))


@pytest.mark.skipif(os.name != "posix", reason="needs the signals of POSIX")
def test_killed_workers_are_replaced_and_cost_no_pair_but_the_one_that_kills_every_time(tmp_path):
    job = {"folder": str(tmp_path), "deaths": {"p1": 1, "p2": 99}, "errors": ["p4"]}
    log = tmp_path / "batch.log"

    rows = list(cluster_rows(job, PAIRS, workers=2, retries=1, threads=3, log=log, register=worker_program()))

    found = {row["pair"]: row for row in rows}
    assert sorted(found) == [pair["pair"] for pair in PAIRS]
    assert "also when it was alone" in found["p2"]["error"]
    assert found["p4"]["error"] == "p4 is bad."
    assert {found[name]["error"] for name in ("p0", "p1", "p3", "p5")} == {""}
    assert tries(tmp_path, "p1") >= 2
    # among others at most twice, then twice alone
    assert 2 < tries(tmp_path, "p2") <= 4
    assert {row["threads"] for row in rows if not row["error"]} == {3}
    assert "p1 is here" in log.read_text()
    for row in rows:
        if not row["error"]:
            with pytest.raises(ProcessLookupError):
                os.kill(row["process"], signal.SIG_DFL)


def test_a_cluster_that_runs_is_used_and_left_running(tmp_path):
    job = {"folder": str(tmp_path), "deaths": {}, "errors": []}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, memory_limit=0) as cluster:
        rows = list(cluster_rows(job, PAIRS, scheduler=cluster.scheduler_address, register=worker_program()))

        assert {row["process"] for row in rows} == {worker.pid for worker in cluster.workers.values()}

    assert sorted(row["pair"] for row in rows) == [pair["pair"] for pair in PAIRS]


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(batch_cluster, "PATIENCE", 0.2)

    with pytest.raises(OSError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        next(cluster_rows({}, PAIRS, scheduler="tcp://127.0.0.1:9"))


@pytest.mark.parametrize("options", [{"workers": 2}, {"scheduler": "tcp://host:8786"}])
def test_without_dask_the_error_says_what_to_install_before_anything_is_done(tmp_path, monkeypatch, options):
    monkeypatch.setattr(batch_cluster, "find_spec", lambda name: None)
    (option,) = options

    with pytest.raises(ModuleNotFoundError, match=rf"--{option} needs Dask.*monai-reg-ext\[cluster\]"):
        batch("absent.csv", output=str(tmp_path / "out"), **options)

    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    check_cluster_installed("--workers")
