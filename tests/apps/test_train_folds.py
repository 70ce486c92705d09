# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from monai_reg_ext.apps import train_folds

CONFIG = {
    "imports": ["$import json", "$from pathlib import Path"],
    "fold": 7,
    "folds": 7,
    "output_dir": "",
    "predictions_dir": "",
    "log": "",
    "epochs": 1,
    "failing": [],
    "interrupted": False,
    "told": {"fold": "@fold", "folds": "@folds", "predictions_dir": "@predictions_dir", "epochs": "@epochs"},
    "initialize": ["$Path(@output_dir).mkdir(parents=True, exist_ok=True)"],
    "run": [
        "$print(json.dumps(@told), file=Path(@log).open('a'))",
        "$Path(@output_dir, 'model.pt').write_text('half') if @interrupted else None",
        "$1 / 0 if @fold in @failing else None",
        "$Path(@output_dir, 'model.pt').write_text('weights ' + str(@epochs))",
    ],
}


@pytest.fixture
def config(tmp_path):
    """A training that writes a line to a log, fails in the folds that it is told to, and leaves its weights."""
    path = tmp_path / "configs" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**CONFIG, "log": str(tmp_path / "log")}))
    return path


@pytest.fixture
def seen(tmp_path):
    """The folds that were trained since the last call, in order."""

    def read():
        log = tmp_path / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [json.loads(line)["fold"] for line in lines]

    return read


def test_every_fold_is_trained_in_turn_and_then_all_cases(config, tmp_path, seen):
    model = train_folds(config, tmp_path / "out", folds=3)

    assert seen() == [0, 1, 2, None]
    assert model == tmp_path / "out" / "all" / "model.pt"
    assert sorted(path.parent.name for path in tmp_path.glob("out/*/model.pt")) == ["all", "fold0", "fold1", "fold2"]


def test_without_folds_all_cases_are_trained_on_at_once(config, tmp_path, seen):
    model = train_folds(str(config), str(tmp_path / "out"), folds=0)

    assert seen() == [None]
    assert list(tmp_path.glob("out/*")) == [model.parent]


def test_all_folds_share_the_options_and_the_folder_of_predictions(config, tmp_path):
    train_folds(config, tmp_path / "out", folds=2, epochs=5)

    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    common = {"folds": 2, "predictions_dir": str(tmp_path / "out" / "predictions"), "epochs": 5}
    assert told == [{"fold": fold, **common} for fold in (0, 1, None)]


def test_parts_of_the_config_can_be_replaced(config, tmp_path):
    train_folds(config, tmp_path / "out", folds=0, **{"told#epochs": 8})

    assert json.loads((tmp_path / "log").read_text())["epochs"] == 8


def test_finished_folds_are_left_as_they_are(config, tmp_path, seen, caplog):
    caplog.set_level(logging.INFO, "monai_reg_ext")
    train_folds(config, tmp_path / "out", folds=2)
    seen()
    (tmp_path / "out" / "fold1" / "model.pt").unlink()

    train_folds(config, tmp_path / "out", folds=2, epochs=9)

    assert seen() == [1]
    weights = [(tmp_path / "out" / name / "model.pt").read_text() for name in ("fold0", "fold1", "all")]
    assert weights == ["weights 1", "weights 9", "weights 1"]
    assert f"{tmp_path / 'out' / 'fold0' / 'model.pt'} is there, nothing to train" in caplog.messages


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_fold_that_failed_leaves_no_weights_and_is_trained_when_asked_again(config, tmp_path, seen, interrupted):
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        train_folds(config, tmp_path / "out", folds=3, failing=[1], interrupted=interrupted)

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert seen() == [0, 1]
    assert [path.parent.name for path in tmp_path.glob("out/*/model.pt")] == ["fold0"]
    train_folds(config, tmp_path / "out", folds=3)
    assert seen() == [1, 2, None]


def test_so_does_one_that_the_user_stopped(config, tmp_path, seen, monkeypatch):
    def stop(path, *args):
        Path.write_bytes(path, b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            train_folds(config, tmp_path / "out", folds=2)

    assert not list(tmp_path.glob("out/*/model.pt"))
    seen()
    train_folds(config, tmp_path / "out", folds=2)
    assert seen() == [0, 1, None]


@pytest.mark.parametrize("place", ["initialize", "run"])
def test_cases_that_cannot_be_trained_on_end_the_process_with_one_line(config, tmp_path, place):
    dataset = {
        "_target_": "CacheDataset",
        "data": [{"label": torch.full((1, 2, 3, 4), 9)}],
        "transform": {"_target_": "monai_reg_ext.transforms.LabelsToChannelsd", "keys": "label", "labels": [0, 1]},
        "progress": False,
    }

    with pytest.raises(SystemExit) as caught:
        train_folds(config, tmp_path / "out", folds=2, dataset=dataset, **{place: ["@dataset"]})

    assert caught.value.code.startswith(
        "error: a label map holds the classes [9], the network has channels for [0, 1]."
    )
    assert len(caught.value.code.splitlines()) == 1


def test_a_config_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*nowhere.json\.$"):
        train_folds(tmp_path / "nowhere.json", tmp_path / "out", folds=0)


def test_a_config_that_leaves_no_weights_is_told(config, tmp_path, seen):
    with pytest.raises(SystemExit, match=r"^error: .*train.json has left no .*fold0/model.pt\. Save the weights"):
        train_folds(config, tmp_path / "out", folds=2, run=["$None"])


@pytest.mark.parametrize("folds", [1, -1])
def test_a_number_of_folds_that_leaves_nothing_to_train_on_is_refused(config, tmp_path, seen, folds):
    with pytest.raises(SystemExit, match=rf"^error: folds must be 0, or 2 at least .* got {folds}\."):
        train_folds(config, tmp_path / "out", folds)

    assert seen() == []


def test_a_folder_in_the_home_directory_is_found(config, tmp_path, seen, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert train_folds(config, "~/out", folds=0) == tmp_path / "out" / "all" / "model.pt"
    train_folds(config, "~/out", folds=0)
    assert seen() == [None]
