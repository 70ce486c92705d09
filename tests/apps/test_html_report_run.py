# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from monai_reg_ext.apps.html_report_run import read_run


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_what_was_not_measured_and_what_is_no_number_has_no_value(tmp_path):
    write(tmp_path / "metrics.csv", "pair,dice,hd95,scanner,error\na,81.5,inf,new,\nb,nan,,old,\n")

    run = read_run(tmp_path)

    assert [(pair.number, pair.name) for pair in run.pairs] == [(1, "a"), (2, "b")]
    assert [pair.values for pair in run.pairs] == [{"dice": 81.5, "hd95": math.inf}, {}]


def test_columns_stand_in_the_order_of_a_pairs_page_and_before_stands_before_after(tmp_path):
    header = "pair,own,dice,dice_before,hd95,sdlogj,tre_mm,tre_mm_before,seconds,error"
    write(tmp_path / "metrics.csv", f"{header}\na,1,2,3,,5,6,7,8,\n")

    names = [metric.name for metric in read_run(tmp_path).metrics]

    assert names == ["dice_before", "dice", "tre_mm_before", "tre_mm", "sdlogj", "seconds", "own"]


def test_a_measure_that_exists_only_before_has_its_column(tmp_path):
    write(tmp_path / "metrics.csv", "pair,dice,dice_before,error\na,,3,dice could not be measured\n")

    assert [metric.name for metric in read_run(tmp_path).metrics] == ["dice_before"]


def test_a_failed_pair_does_not_show_the_picture_of_an_earlier_run(tmp_path):
    write(tmp_path / "metrics.csv", "pair,dice,error\ngood,80,\nfailed,,no such file\nbare,70,\n")
    for name in ("good", "failed"):
        write(tmp_path / name / "report.png", "")

    run = read_run(tmp_path)

    assert [pair.picture for pair in run.pairs] == [tmp_path / "good" / "report.png", None, None]
    assert [pair.name for pair in run.failed] == ["failed"]


@pytest.mark.parametrize("folder", ["{root}/run", ".", "../other/../run"])
@pytest.mark.parametrize("name", ["../other", "{root}/other"])
def test_the_name_of_a_pair_cannot_reach_out_of_the_folder(tmp_path, monkeypatch, name, folder):
    write(tmp_path / "other" / "report.png", "")
    write(tmp_path / "run" / "inside" / "report.png", "")
    write(tmp_path / "run" / "metrics.csv", f"pair,error\n{name.format(root=tmp_path)},\ninside,\n")
    monkeypatch.chdir(tmp_path / "run")

    run = read_run(folder.format(root=tmp_path))

    assert [pair.picture for pair in run.pairs] == [None, run.folder / "inside" / "report.png"]


def test_the_method_stands_in_the_summary_or_else_in_the_settings(tmp_path):
    write(tmp_path / "metrics.csv", "pair,error\na,\n")
    assert read_run(tmp_path).method == ""

    write(tmp_path / "settings.json", json.dumps({"method": "from_settings"}))
    assert read_run(tmp_path).method == "from_settings"

    write(tmp_path / "summary.json", json.dumps({"method": "from_summary"}))
    assert read_run(tmp_path).method == "from_summary"


@pytest.mark.parametrize("table", ["", "pair,dice,error\n", "name,dice\na,80\n"])
def test_a_table_without_pairs_is_refused(tmp_path, table):
    write(tmp_path / "metrics.csv", table)

    with pytest.raises(ValueError, match=r"at least one row with a pair.*metrics\.csv has none"):
        read_run(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got no .*metrics\.csv\. Give the run's output_dir\."):
        read_run(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{", "must hold JSON"), ("[1]", "must hold a dictionary, got list")])
@pytest.mark.parametrize("name", ["summary.json", "settings.json"])
def test_a_broken_file_of_the_run_is_named(tmp_path, name, content, message):
    write(tmp_path / "metrics.csv", "pair,error\na,\n")
    write(tmp_path / name, content)

    with pytest.raises(ValueError, match=f"{name} {message}.*Repair or remove it"):
        read_run(tmp_path)
