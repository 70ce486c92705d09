# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from monai_reg_ext.apps.command_line import main
from monai_reg_ext.apps.run_folder import RunFolder
from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.data import phantom_pair, write_points

QUICK = {"network_def#estimator#half_width": 2, "network_def#refiner#iterations": 3}
FLAGS = [word for key, value in QUICK.items() for word in (f"--{key}", str(value))]
MONAI_REG = [sys.executable, "-m", "monai_reg_ext.apps.command_line"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """``pairs.csv`` of eight small phantoms p0 to p7 with labels and points, and their files beside it."""
    folder = tmp_path_factory.mktemp("scans")
    rows = []
    for seed in range(8):
        pair = phantom_pair((36, 32, 28), (5, 5, 7), max_displacement_mm=15, seed=seed)
        row = {"pair": f"p{seed}"}
        for key in ("fixed", "moving", "fixed_label", "moving_label"):
            row[key] = f"{seed}_{key}.nii.gz"
            write_volume(pair[key], folder / row[key])
        for key in ("fixed_points", "moving_points"):
            row[key] = f"{seed}_{key}.csv"
            write_points(folder / row[key], pair[key])
        rows.append(row)
    write_table(folder / "pairs.csv", rows)
    return folder


def first_pairs(scans: Path, number: int) -> list[dict[str, str]]:
    """Rows of ``pairs.csv`` for a table elsewhere."""
    rows = read_table(scans / "pairs.csv")[:number]
    return [{key: name if key == "pair" else str(scans / name) for key, name in row.items()} for row in rows]


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def status_of(*arguments: str) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code
    return 0


def figures(row: dict) -> dict[str, float]:
    """What was measured of a pair, but for the seconds, which depend on the machine's mood."""
    words = ("pair", "error", "seconds")
    return {key: float(value) for key, value in row.items() if key not in words and value != ""}


def test_two_scans_are_registered_measured_and_told_about(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(scans)
    inputs = ["0_fixed.nii.gz", "0_moving.nii.gz", "--fixed_label", "0_fixed_label.nii.gz"]
    inputs += ["--moving_label", "0_moving_label.nii.gz", "--output", tmp_path / "out", "--device", "cpu", *FLAGS]

    assert status_of("register", *inputs) == 0

    told = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert f"{summary['dice']:.4g} %   (before: {summary['dice_before']:.4g})" in told
    assert str(tmp_path / "out" / "0_fixed__0_moving") in told
    assert {"warped.nii.gz", "field.nii.gz"} <= {
        path.name for path in (tmp_path / "out" / "0_fixed__0_moving").iterdir()
    }

    assert status_of("register", *inputs) == 0
    assert "results of the same settings are replaced" in capsys.readouterr().out

    before = (tmp_path / "out" / "summary.json").read_bytes()
    assert status_of("register", *inputs, "--spacing", "8") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "spacing: auto there, 8 now" in error
    assert "--overwrite" in error
    assert (tmp_path / "out" / "summary.json").read_bytes() == before

    assert status_of("register", *inputs, "--spacing", "8", "--overwrite") == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["config"]["spacing"] == 8


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["0_fixed.nii.gz", "absent.mha"], 1, "absent.mha"),
        (["0_fixed.nii.gz", "0_moving.nii.gz", "--method", "none"], 1, "no bundle 'none'"),
        (["0_fixed.nii.gz", "0_moving.nii.gz", "--moving_mask", "none.nii"], 1, "none.nii"),
        (["0_fixed.nii.gz", "0_moving.nii.gz", "--spacin", "2"], 2, "no option --spacin"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line_and_may_be_mended_without_overwriting(
    scans, tmp_path, monkeypatch, capsys, arguments, status, said
):
    monkeypatch.chdir(scans)

    assert status_of("register", *arguments, "--output", tmp_path / "out", *FLAGS) == status

    error = capsys.readouterr().err
    assert error.startswith("monai-reg register: ")
    assert error.count("\n") == 1
    assert said in error
    RunFolder(tmp_path / "out").claim({"method": "", "package": "", "config": {}, "pairs": []})  # nothing to protect


def start(out: Path, *arguments: str) -> subprocess.Popen:
    """A batch in a process group of its own; what it says goes into a file beside its folder."""
    with out.with_suffix(".txt").open("ab") as said:
        return subprocess.Popen(
            [*MONAI_REG, "batch", *map(str, arguments), "--output", out, *FLAGS],
            start_new_session=True, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip


def assert_success(process: subprocess.Popen, out: Path) -> None:
    assert process.wait(timeout=240) == 0, out.with_suffix(".txt").read_text()


def finished(folder: Path) -> dict[str, int]:
    """Finished pairs, and when the last of their files was written."""
    rows = folder.glob("*/metrics.json")
    return {row.parent.name: max(path.stat().st_mtime_ns for path in row.parent.iterdir()) for row in rows}


def wait_for(folder: Path, pairs: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 240
    while len(finished(folder)) < pairs:
        assert process.poll() is None, (folder / "batch.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.02)


def compile_kernels(scans: Path, out: Path) -> None:
    """Have what the processes of a batch need in numba's cache."""
    images = [scans / f"0_{side}.nii.gz" for side in ("fixed", "moving")]
    assert status_of("register", *images, "--output", out, *FLAGS) == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs the signals of POSIX")
def test_a_batch_that_is_killed_goes_on_without_losing_halving_or_doubling_a_pair(scans, tmp_path):
    pytest.importorskip("distributed")
    # a kernel just compiled differs in the last digits from the same one loaded, and refinement amplifies that
    compile_kernels(scans, tmp_path / "compiled")
    calm = tmp_path / "calm"
    assert_success(start(calm, scans / "pairs.csv", "--workers", 2), calm)
    undisturbed = {row["pair"]: row for row in read_table(calm / "metrics.csv")}
    out = tmp_path / "out"
    command = (out, scans / "pairs.csv", "--workers", 2)

    first = start(*command)
    wait_for(out, 2, first)
    os.killpg(first.pid, signal.SIGKILL)  # parent and workers at once
    first.wait()
    after_first = finished(out)

    second = start(*command)
    wait_for(out, len(after_first) + 2, second)
    os.kill(second.pid, signal.SIGKILL)  # the parent alone
    second.wait()
    with RunFolder(out).alone():  # given only when the workers have ended too
        after_second = finished(out)

    assert 2 <= len(after_first) < len(after_second) < 8
    assert_success(start(*command), out)

    after_third = finished(out)
    assert sorted(after_third) == [f"p{seed}" for seed in range(8)]
    assert {pair: after_third[pair] for pair in after_second} == after_second  # none was done twice
    assert {pair: after_third[pair] for pair in after_first} == after_first
    assert list(out.rglob(".unfinished*")) == []
    table = read_table(out / "metrics.csv")
    assert [row["pair"] for row in table] == [f"p{seed}" for seed in range(8)]
    for row in table:
        assert figures(row) == pytest.approx(figures(undisturbed[row["pair"]]), rel=1e-6)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["pairs"], summary["failed"]) == (8, 0)
    for pair in after_third:
        names, of_calm = (sorted(path.name for path in (folder / pair).iterdir()) for folder in (out, calm))
        assert names == of_calm
        for name in ("ddf.nii.gz", "warped_label.nii.gz"):
            assert (out / pair / name).read_bytes()[10:] == (calm / pair / name).read_bytes()[10:]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the worker in /proc")
def test_a_worker_that_dies_fails_its_pair_only_and_failed_pairs_are_tried_again(scans, tmp_path, capsys):
    rows = first_pairs(scans, 4)
    table = tmp_path / "pairs.csv"
    absent = str(tmp_path / "late.nii.gz")
    write_table(table, [rows[0], {**rows[1], "moving": absent}, *rows[2:]])
    out = tmp_path / "out"

    batch = start(out, table)
    wait_for(out, 1, batch)
    while not any("p2" in row["pair"] for row in read_table(out / "metrics.csv")):
        worker = worker_of(batch.pid)
        if worker is not None and len(read_table(out / "metrics.csv")) == 2:
            os.kill(worker, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert batch.wait(timeout=240) == 1

    errors = {row["pair"]: row["error"] for row in read_table(out / "metrics.csv")}
    assert list(errors) == ["p0", "p1", "p2", "p3"]
    assert errors["p0"] == errors["p3"] == ""
    assert "late.nii.gz" in errors["p1"]
    assert "was ended by SIGKILL" in errors["p2"]
    assert not (out / "p1").exists()
    times = finished(out)
    assert sorted(times) == ["p0", "p3"]

    shutil.copy(rows[1]["moving"], absent)
    assert status_of("batch", table, "--output", out, *FLAGS) == 0

    assert "2 of 4 pairs are finished already." in capsys.readouterr().out
    assert {row["error"] for row in read_table(out / "metrics.csv")} == {""}
    assert {pair: time for pair, time in finished(out).items() if pair in times} == times
    assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the workers in /proc")
def test_a_cluster_whose_worker_is_killed_finishes_every_pair(scans, tmp_path):
    pytest.importorskip("distributed")
    out = tmp_path / "out"
    write_table(tmp_path / "pairs.csv", first_pairs(scans, 4))

    batch = start(out, tmp_path / "pairs.csv", "--workers", 2)
    wait_for(out, 1, batch)
    os.kill(worker_of(batch.pid, "spawn_main"), signal.SIGKILL)

    assert_success(batch, out)
    assert [row["pair"] for row in read_table(out / "metrics.csv")] == [f"p{seed}" for seed in range(4)]
    assert {row["error"] for row in read_table(out / "metrics.csv")} == {""}
    assert list(out.rglob(".unfinished*")) == []
    assert (out / "report.html").exists()


def worker_of(parent: int, word: str = "") -> int | None:
    """A process that a process has started, with a word in its command."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_text()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent and word in command:
            return int(status.parent.name)
    return None


def test_a_batch_says_what_it_does_not_take(scans, tmp_path, capsys):
    rows = [{"fixed": "a.nii", "moving": "b.nii"}] * 2
    write_table(tmp_path / "twice.csv", rows)
    write_table(tmp_path / "outside.csv", [{**rows[0], "pair": "../a"}])
    out = ("--output", tmp_path / "out")

    assert status_of("batch", tmp_path / "twice.csv", *out) == 1
    assert "2 pairs are called 'a__b'" in capsys.readouterr().err
    assert status_of("batch", tmp_path / "outside.csv", *out) == 1
    assert "'../a' cannot be" in capsys.readouterr().err
    assert status_of("batch", tmp_path / "absent", *out) == 1
    assert "absent does not exist" in capsys.readouterr().err
    assert status_of("batch", scans / "pairs.csv", "--workers", "0", *out) == 2
    assert "--workers needs a number" in capsys.readouterr().err
    assert status_of("batch", scans / "pairs.csv", "--fixed_mask", "m.nii", *out) == 2
    assert "stand in the table" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_wheel_holds_the_bundles_and_the_command(bundles_dir, tmp_path):
    pytest.importorskip("setuptools")
    repository, source = bundles_dir.parent, tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "eval")
    for name in ("monai_reg_ext", "bundles"):
        shutil.copytree(repository / name, source / name, ignore=ignored)
    (source / "bundles" / "convex_adam" / "eval").mkdir()
    (source / "bundles" / "convex_adam" / "eval" / "summary.json").write_text("{}")  # results stay at home
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, source]

    subprocess.run(list(map(str, command)), check=True, capture_output=True)

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "monai-reg = monai_reg_ext.apps.command_line:main" in wheel.read(entry_points).decode()
    packed = {name for name in names if name.startswith("monai_reg_ext/bundles/")}
    files = [path for path in bundles_dir.glob("*/*/*") if path.parent.name in ("configs", "docs", "models")]
    kept = [*files, *bundles_dir.glob("*/LICENSE")]
    assert packed == {f"monai_reg_ext/bundles/{path.relative_to(bundles_dir).as_posix()}" for path in kept}
    modules = {path.relative_to(repository).as_posix() for path in (repository / "monai_reg_ext").rglob("*.py")}
    assert modules <= set(names)
