# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import io
import logging
import re
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_reg_ext.apps import html_report_pictures
from monai_reg_ext.apps.html_report_metric import report_metric
from monai_reg_ext.apps.html_report_pictures import pictures_of, ranking_metric
from monai_reg_ext.apps.html_report_run import ReportPair, ReportRun

SIZE = (60, 24)  # width, height


def run_of(folder: Path, values: dict[str, dict[str, float]], size=SIZE) -> ReportRun:
    """A run whose every pair has a picture of one colour."""
    pairs = []
    for number, (name, measured) in enumerate(values.items(), start=1):
        picture = folder / name / "report.png"
        picture.parent.mkdir(parents=True)
        Image.new("RGBA", size, (200, 90, 30, 255)).save(picture)
        pairs.append(ReportPair(number, name, measured, "", picture))
    names = dict.fromkeys(name for measured in values.values() for name in measured)
    return ReportRun(folder, pairs, [report_metric(name) for name in names], {}, {})


def decode(source: str) -> Image.Image:
    kind, data = source.split(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@pytest.mark.parametrize(
    ("values", "metric", "order"),
    [
        ([{"dice": 70, "tre_mm": 1}, {"tre_mm": 9}, {"dice": 60, "tre_mm": 0}, {"dice": 80}], "dice", "cadb"),
        ([{"tre_mm": 1, "sdlogj": 3}, {"sdlogj": 9}, {"tre_mm": 4}, {"tre_mm": 2}], "tre_mm", "cdab"),
        ([{"sdlogj": 0.3}, {"sdlogj": 0.1}, {"sdlogj": 0.4}, {"sdlogj": 0.2}], "sdlogj", "cadb"),
        ([{"seconds": 3}, {"seconds": 2}, {"seconds": 9}, {}], None, "abcd"),
    ],
)
def test_the_worst_pair_comes_first_by_the_metric_that_says_most(tmp_path, values, metric, order):
    run = run_of(tmp_path, dict(zip("abcd", values, strict=True)))

    ranking = ranking_metric(run)

    assert (ranking and ranking.name) == metric
    assert "".join(picture.pair.name for picture in pictures_of(run, embedded=4)) == order


def test_so_many_pictures_are_embedded_and_the_others_are_links_alone(tmp_path):
    run = run_of(tmp_path, {name: {"dice": dice} for name, dice in (("a", 80), ("b", 60), ("c", 70))})

    pictures = pictures_of(run, embedded=2)

    assert [(picture.pair.name, bool(picture.source)) for picture in pictures] == [
        ("b", True),
        ("c", True),
        ("a", False),
    ]
    assert [picture.link for picture in pictures] == [f"{name}/report.png" for name in "bca"]
    assert [picture.size for picture in pictures] == [SIZE, SIZE, (0, 0)]
    assert decode(pictures[0].source).size == SIZE


def test_what_would_make_the_page_too_large_is_a_link(tmp_path, monkeypatch):
    run = run_of(tmp_path, {name: {} for name in "abc"})
    length = len(pictures_of(run, embedded=1)[0].source)
    monkeypatch.setattr(html_report_pictures, "LARGEST_TOTAL", 2 * length)

    assert [bool(picture.source) for picture in pictures_of(run, embedded=3)] == [True, True, False]


def test_a_wide_picture_is_shrunk_and_keeps_its_proportions(tmp_path):
    (picture,) = pictures_of(run_of(tmp_path, {"a": {}}, size=(4800, 1500)), embedded=1)

    assert picture.size == decode(picture.source).size == (1920, 600)


def test_a_thin_coloured_line_keeps_its_colour(tmp_path):
    run = run_of(tmp_path, {"a": {}})
    page = np.zeros((24, 60, 3), dtype=np.uint8)
    page[:, 31] = outline = np.array([57, 197, 255])
    Image.fromarray(page).save(run.pairs[0].picture)

    embedded = np.asarray(decode(pictures_of(run, embedded=1)[0].source), dtype=int)

    assert np.abs(embedded[:, 31] - outline).max() < 40  # half the colours would be lost at half their resolution


@pytest.mark.parametrize("name", ["a b", "#1?x=1&y", "50%25", "ä中文", "javascript:alert(1)", "q\"u'o<t>e"])
def test_a_link_leads_to_the_file_whatever_the_name(tmp_path, name):
    (picture,) = pictures_of(run_of(tmp_path, {name: {}}), embedded=0)

    assert re.fullmatch(r"(?:[A-Za-z0-9_.~/-]|%[0-9A-F]{2})+", picture.link)
    assert tmp_path / urllib.parse.unquote(picture.link) == picture.pair.picture


def test_a_picture_that_cannot_be_read_is_a_link_and_a_warning(tmp_path, caplog):
    run = run_of(tmp_path, {"a": {}, "b": {}})
    whole = run.pairs[0].picture.read_bytes()
    run.pairs[0].picture.write_bytes(whole[: len(whole) // 2])

    with caplog.at_level(logging.WARNING):
        pictures = pictures_of(run, embedded=2)

    assert [bool(picture.source) for picture in pictures] == [False, True]
    assert f"{run.pairs[0].picture} cannot be shown in the report" in caplog.text
