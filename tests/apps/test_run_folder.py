# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from monai_reg_ext.apps import run_folder
from monai_reg_ext.apps.run_folder import RunFolder


def settings(*names: str, iterations: int = 80, **files: str) -> dict:
    pairs = [{"pair": name, "fixed": files.get(name, "/a/fixed.nii"), "moving": "/a/moving.nii"} for name in names]
    config = {"network_def": {"refiner": {"iterations": iterations, "widths": [3, 3]}}, "initial": "auto"}
    return {"method": "shift", "package": "0.1.0", "config": config, "pairs": pairs, "versions": {"torch": "2"}}


def write(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def names_in(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def done(tmp_path):
    """The folder of a run with the finished pairs a and b, in which someone keeps files of his own too."""
    folder = RunFolder(tmp_path / "run")
    folder.write_settings(settings("a", "b"))
    write(folder.path, "metrics.csv", "summary.json", "report.html", "notes.txt", "other/warped.nii.gz", "a/my.txt")
    write(folder.path, *(f"{pair}/{name}" for pair in "ab" for name in ("warped.nii.gz", "report.png", "metrics.json")))
    return folder


def test_a_folder_that_does_not_exist_is_free(tmp_path):
    assert RunFolder(tmp_path / "new").claim(settings("a")) is False
    assert not (tmp_path / "new").exists()


def test_results_of_the_same_settings_are_recognised(done):
    assert done.claim(settings("a", "b")) is True


def test_pairs_may_be_added(done):
    assert done.claim(settings("a", "more", "b")) is True


def test_other_versions_of_what_it_ran_on_do_not_matter(done):
    assert done.claim({**settings("a", "b"), "versions": {"torch": "3"}}) is True


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (settings("a", "b", iterations=7), r"network_def#refiner#iterations: 80 there, 7 now"),
        ({**settings("a", "b"), "method": "other"}, r"method: shift there, other now"),
        ({**settings("a", "b"), "package": "0.2.0"}, r"package: 0.1.0 there, 0.2.0 now"),
        (settings("a"), r"pair b is not asked for now"),
        (settings("a", "b", a="/elsewhere/fixed.nii.gz"), r"pair a is of other files now"),
    ],
)
def test_results_of_other_settings_or_inputs_are_refused_and_stay(done, now, reason):
    before = names_in(done.path)

    with pytest.raises(ValueError, match=rf"{reason}.*--overwrite"):
        done.claim(now)

    assert names_in(done.path) == before


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(done):
    assert done.claim(settings("c"), overwrite=True) is False

    assert names_in(done.path) == ["a/my.txt", "notes.txt", "other/warped.nii.gz"]
    assert not (done.path / "b").exists()


def test_results_without_settings_are_refused(done):
    (done.path / "settings.json").unlink()
    (done.path / "summary.json").write_text('{"pairs": 2, "failed": 1}')

    with pytest.raises(ValueError, match="settings are not known"):
        done.claim(settings("a", "b"))


def test_failed_attempts_need_no_permission_to_be_replaced(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_settings(settings("a"))
    (tmp_path / "summary.json").write_text('{"pairs": 1, "failed": 1}')

    assert folder.claim(settings("other")) is False
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("content", ['{"theirs": 1}', "[1]"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_settings_of_something_else_are_not_touched(tmp_path, content, overwrite):
    (tmp_path / "settings.json").write_text(content)

    with pytest.raises(ValueError, match="not of a run"):
        RunFolder(tmp_path).claim(settings("a"), overwrite)

    assert (tmp_path / "settings.json").read_text() == content


def test_names_that_lead_out_of_the_folder_are_not_followed(done):
    write(done.path.parent, "outside/warped.nii.gz")
    (done.path / "metrics.csv").write_text("pair,error\n../outside,\n..,\n")

    done.claim(settings("c"), overwrite=True)

    assert (done.path.parent / "outside" / "warped.nii.gz").exists()


def test_only_pairs_with_a_row_of_their_own_are_finished(done):
    (done.path / "a" / "metrics.json").write_text('{"pair": "a", "dice": 50.5}')
    (done.path / "b" / "metrics.json").unlink()

    assert done.finished("a") == {"pair": "a", "dice": 50.5}
    assert done.finished("b") is None


def test_leftovers_of_a_killed_run_are_swept_out(done):
    write(done.path, ".unfinished_1_metrics.csv", "a/.unfinished_2/warped.nii.gz", "other/.unfinished_3")
    before = set(names_in(done.path))

    done.sweep(["a", "new"])

    assert before - set(names_in(done.path)) == {".unfinished_1_metrics.csv", "a/.unfinished_2/warped.nii.gz"}


def test_the_settings_file_is_json_with_every_value(tmp_path):
    RunFolder(tmp_path).write_settings({**settings("ä"), "tuple": (1, 2)})

    assert json.loads((tmp_path / "settings.json").read_text()) == {**settings("ä"), "tuple": [1, 2]}


@pytest.mark.skipif(not run_folder.has_fcntl, reason="no locks on this system")
def test_two_runs_do_not_share_a_folder_until_the_last_copy_of_the_lock_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
    with RunFolder(tmp_path).alone() as lock:
        sleeper = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=[lock.fileno()], stdin=subprocess.PIPE
        )

    with pytest.raises(ValueError, match="another run is at work"), RunFolder(tmp_path).alone():
        pass

    sleeper.communicate()
    with RunFolder(tmp_path).alone():
        pass
