# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.apps.pair_csv import read_pair_csv


def table(folder, text: str):
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_start_at_the_tables_folder_and_empty_fields_are_not_given(tmp_path):
    path = table(
        tmp_path,
        "fixed,moving,fixed_label,fixed_points,points_space,pair\n"
        "a.nii.gz, sub/b.mha,,p.csv,voxel,first\n"
        "/abs/c.nii.gz,b.mha,l.nii.gz,,lps,\n"
        "a.nii.gz,c.nii.gz,,q.csv,,\n",
    )

    first, second, third = read_pair_csv(path)

    def here(name):
        return str(tmp_path / name)

    assert first == {
        "pair": "first", "fixed": here("a.nii.gz"), "moving": here("sub/b.mha"), "fixed_points": here("p.csv"),
        "points_space": "voxel",
    }  # fmt: skip
    labels = {"fixed_label": here("l.nii.gz")}
    assert second == {"pair": "c__b", "fixed": "/abs/c.nii.gz", "moving": here("b.mha"), **labels}
    assert third["points_space"] == "ras"


def test_spreadsheets_mark_at_the_beginning_is_no_part_of_a_name(tmp_path):
    (pair,) = read_pair_csv(table(tmp_path, "\ufefffixed,moving\na.nii,b.nii\n"))

    assert pair["pair"] == "a__b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed,moving,colour\na,b,c\n", r"does not know the columns \['colour'\]; .*fixed_label"),
        ("fixed,image\na,b\n", r"does not know the columns \['image'\]"),
        ("fixed\na\n", r"needs fixed and moving"),
        ("", r"needs fixed and moving"),
        ("fixed,moving\n", r"lists no pairs"),
        ("fixed,moving\na,b\nc,\n", r"line 3: needs a fixed and a moving image"),
        ("fixed,moving\na,b,c\n", r"line 2: more fields than columns"),
    ],
)
def test_a_table_that_lists_no_pairs_is_refused_with_its_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_pair_csv(table(tmp_path, text))

    assert "pairs.csv" in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(b"\xff\xfe\x00fixed")

    with pytest.raises(ValueError, match="is not a CSV table"):
        read_pair_csv(tmp_path / "pairs.csv")


def test_a_missing_table_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table of pairs at .*none\.csv"):
        read_pair_csv(tmp_path / "none.csv")
