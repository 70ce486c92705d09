# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest

from monai_reg_ext.apps import pairs_of_process, pairs_or_exit, prepare_output


def refusal(call, *args, **kwargs) -> str:
    """The one line that a call ends the process with; a text as code means status 1."""
    with pytest.raises(SystemExit) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value.code, str)
    assert len(caught.value.code.splitlines()) == 1
    return caught.value.code


def test_a_pair_of_files_is_handed_on():
    (pair,) = pairs_or_exit(fixed="scans/A.nii.gz", moving="B.mha", fixed_label="L.nii.gz", moving_label="")

    assert pair == {"pair": "A__B", "fixed": "scans/A.nii.gz", "moving": "B.mha", "fixed_label": "L.nii.gz"}


def test_a_corrected_spacing_goes_with_every_pair_of_a_task(tmp_path):
    pairs = [{"fixed": f"./images/{n}.nii.gz", "moving": "./images/9.nii.gz"} for n in (1, 2)]
    task = {
        "name": "Two",
        "numTraining": 0,
        "training": [],
        "registration_val": pairs,
        "tensorImageShape": {"0": [9, 8, 7]},
        "modality": {"0": "CT"},
    }
    (tmp_path / "Two_dataset.json").write_text(json.dumps(task))
    (tmp_path / "images").mkdir()
    for n in (1, 2, 9):
        (tmp_path / "images" / f"{n}.nii.gz").touch()

    found = pairs_or_exit(dataset_dir=str(tmp_path), moving_spacing=[1, 2.5, 3])

    assert [pair["pair"] for pair in found] == ["1__9", "2__9"]
    assert [pair["moving_spacing"] for pair in found] == [[1, 2.5, 3]] * 2
    assert all("fixed_spacing" not in pair for pair in found)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"fixed": "A.nii.gz"}, "error: a pair needs both fixed and moving"),
        ({"dataset_dir": "somewhere", "fixed": "A.nii.gz"}, "error: give either dataset_dir or images"),
        ({"dataset_dir": "nowhere"}, "error: "),
    ],
)
def test_wrong_input_ends_the_process_with_one_line(inputs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    line = refusal(pairs_or_exit, **inputs)

    assert line.startswith(message)
    assert inputs.get("dataset_dir", "A.nii.gz") in line


@pytest.mark.parametrize("content", ['{"name": ', "[1, 2]", "{}", '{"registration_val": [{"fixed": "a"}]}', "\x00\xff"])
def test_a_task_that_is_none_ends_the_process_with_one_line(content, tmp_path):
    (tmp_path / "Two_dataset.json").write_bytes(content.encode("latin-1"))

    assert str(tmp_path) in refusal(pairs_or_exit, dataset_dir=tmp_path)


def test_the_message_comes_without_the_error_behind_it():
    with pytest.raises(SystemExit) as caught:
        pairs_or_exit(fixed="A.nii.gz")

    assert caught.value.__suppress_context__  # no traceback, whoever prints it


def test_a_new_folder_is_made_and_left_empty(tmp_path):
    prepare_output(str(tmp_path / "new" / "run"))

    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_an_existing_folder_stays_as_it_is(tmp_path):
    (tmp_path / "metrics.csv").write_text("older")
    (tmp_path / "A__B").mkdir()

    prepare_output(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["A__B", "metrics.csv"]
    assert (tmp_path / "metrics.csv").read_text() == "older"


def test_a_folder_in_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    prepare_output("~/run")

    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("below", [".", "run"])
def test_a_file_in_the_way_ends_the_process_with_one_line_and_stays(below, tmp_path):
    (tmp_path / "file").write_text("precious")

    line = refusal(prepare_output, tmp_path / "file" / below)

    assert line.startswith(f"error: cannot write {tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.fixture
def process(monkeypatch):
    """``process(rank, number)``: this is now the process ``rank`` of a ``number`` of them."""

    def become(rank: int, number: int) -> None:
        monkeypatch.setattr("ignite.distributed.get_rank", lambda: rank)
        monkeypatch.setattr("ignite.distributed.get_world_size", lambda: number)

    return become


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_every_pair_belongs_to_one_process_and_none_goes_without(process, number):
    pairs = [{"pair": name} for name in "abcdefg"]
    shares = []
    for rank in range(number):
        process(rank, number)
        shares.append([pair["pair"] for pair in pairs_of_process(pairs)])

    assert sorted(pair for share in shares for pair in share) == list("abcdefg")
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(shares)


def test_more_processes_than_pairs_are_refused(process):
    process(0, 3)

    assert refusal(pairs_of_process, [{"pair": "a"}, {"pair": "b"}]).startswith("error: 3 processes share 2 pairs.")
