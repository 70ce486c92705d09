# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from monai_reg_ext.apps import batch_run
from monai_reg_ext.apps.batch_run import run_batch
from monai_reg_ext.apps.run_folder import RunFolder

PAIRS = [{"pair": f"p{number}", "fixed": "a.nii", "moving": "b.nii"} for number in range(7)]


@pytest.fixture
def run():
    """What stands for a way to register."""
    return SimpleNamespace(method="method", arguments=dict)


def rows_of(job, pairs, *further):
    return ({"pair": pair["pair"], "fixed": pair["fixed"]} for pair in pairs)


def test_the_table_of_a_long_batch_is_not_written_with_every_pair(run, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(batch_run, "TABLES", 2)
    monkeypatch.setattr(batch_run, "_write", lambda recorder, rows, names: written.append(len(rows)))
    monkeypatch.setattr(batch_run, "_rows_of_a_process", rows_of)
    folder, told = RunFolder(tmp_path), []

    with folder.alone() as lock:
        run_batch(run, PAIRS, folder, lock, tell=lambda progress, row: told.append(progress))

    # before, with every fourth of seven, and at the end
    assert written == [0, 4, 7]
    assert told == [f"{number}/7" for number in range(1, 8)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"workers": 3}, (3, None, 2)),
        ({"workers": 99, "retries": 5}, (7, None, 5)),
        ({"scheduler": "tcp://host:8786"}, (1, "tcp://host:8786", 2)),
    ],
)
def test_a_cluster_gets_paths_that_hold_everywhere(run, tmp_path, monkeypatch, options, expected):
    called = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch_run, "_write", lambda recorder, rows, names: sorted(rows))

    def cluster_rows(job, pairs, workers, scheduler, retries, threads, log):
        called.append((workers, scheduler, retries))
        assert os.path.isabs(job["output_dir"])
        return rows_of(job, pairs)

    monkeypatch.setattr(batch_run, "cluster_rows", cluster_rows)
    folder, rows = RunFolder("out"), []

    with folder.alone() as lock:
        done = run_batch(run, PAIRS, folder, lock, tell=lambda progress, row: rows.append(row), **options)

    assert called == [expected]
    assert done == [pair["pair"] for pair in PAIRS]
    assert {row["fixed"] for row in rows} == {str(tmp_path / "a.nii")}
