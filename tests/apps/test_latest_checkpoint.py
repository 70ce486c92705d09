# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from itertools import permutations

import pytest

from monai_reg_ext.apps import latest_checkpoint


def write(path, seconds):
    """A file that was written so many seconds after an arbitrary moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, ns=(0, 1_700_000_000_000_000_000 + round(seconds * 1e9)))
    return path


@pytest.mark.parametrize("times", [(1, 2, 3), (1, 3, 2), (3, 2, 1), *permutations((1, 1, 1 + 1e-8))])
def test_the_newest_counts_not_the_last_by_name(tmp_path, times):
    paths = [write(tmp_path / f"checkpoint_epoch={n}.pt", time) for n, time in zip((9, 10, 100), times, strict=True)]

    assert latest_checkpoint(tmp_path) == str(paths[times.index(max(times))])


def test_other_files_are_no_checkpoints(tmp_path):
    write(tmp_path / "epoch=1.pt", 1)
    write(tmp_path / "tmp8s7d", 2)  # what is being written, while it is
    write(tmp_path / "below" / "epoch=2.pt", 3)

    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "epoch=1.pt")


def test_a_folder_that_is_empty_or_none_starts_anew(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_folder_in_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "checkpoints" / "a.pt", 1)

    assert latest_checkpoint("~/checkpoints") == str(tmp_path / "checkpoints" / "a.pt")
