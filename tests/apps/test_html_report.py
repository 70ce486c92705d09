# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_reg_ext.apps import write_html_report
from monai_reg_ext.handlers import RunRecorder

HOSTILE = 'a<b onclick="x">&amp;\'c</script><script>alert(1)</script><img src=http://127.0.0.1/x>'


class Page(HTMLParser):
    """Elements of a page and its text, as a browser takes them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write_run(folder: Path, rows: list[dict], picture: bytes | None = None, summary: bool = True) -> Path:
    """What a run leaves: its table, its summary, and where pairs did not fail their pictures."""
    recorder = RunRecorder(folder, method="shift")
    recorder.rows += [{"error": "", **row} for row in rows]
    recorder.write_table()
    if summary:
        recorder.write_summary()
    for row in recorder.rows:
        if picture and not row["error"]:
            path = folder / row["pair"] / "report.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(picture)
    return folder


def png(tmp_path: Path, size=(64, 30)) -> bytes:
    """Noise, which no compression makes small."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return (tmp_path / "noise.png").read_bytes()


def measured(number: int) -> dict[str, float]:
    before = {"dice_before": 50 + number % 13, "tre_mm_before": 12 - number % 5}
    return {"dice": 70 + number % 17, "tre_mm": 1 + number % 3, "sdlogj": 0.04, "seconds": 2.0, **before}


def test_the_means_are_those_of_the_summary(tmp_path):
    rows = [{"pair": f"p{i}", **measured(i)} for i in range(7)]
    folder = write_run(tmp_path / "run", [*rows, {"pair": "bad", "error": "no such file", "dice_before": 40.0}])
    summary = json.loads((folder / "summary.json").read_text())

    page = Page(write_html_report(folder))

    assert f"{summary['dice_before']:.1f} → before, after {summary['dice']:.1f} %" in page.words
    assert f"{summary['tre_mm_before']:.1f} → before, after {summary['tre_mm']:.1f} mm" in page.words
    assert f"± {summary['dice_std']:.1f} · median" in page.words
    assert f"Time {summary['seconds_per_pair']:.1f} s" in page.words
    assert "method shift 8 pairs 1 failed" in page.words


def test_every_pair_has_a_row_with_its_values_and_a_failed_one_its_error(tmp_path):
    rows = [{"pair": "first", "dice": 81.26, "hd95": float("inf")}, {"pair": "second", "error": "no such file"}]
    page = Page(write_html_report(write_run(tmp_path, rows, summary=False)))

    keys = [header["data-key"] for header in page.all("th") if header.get("scope") == "col"]
    names = [header["data-value"] for header in page.all("th") if "data-value" in header]
    assert keys == ["pair", "dice", "hd95"]
    assert names == ["first", "second"]
    assert [cell["data-value"] for cell in page.all("td") if "data-value" in cell] == ["81.26", "Infinity", "", ""]
    assert "first 81.3 inf secondfailed: no such file – –" in page.words
    assert "Failed pairs second no such file" in page.words
    assert [row.get("class") for row in page.all("tr") if "id" in row] == [None, "failed"]


def test_names_and_errors_are_text_whatever_they_hold(tmp_path):
    name = HOSTILE.replace("/", "∕")  # a name cannot be a path
    settings = {HOSTILE: HOSTILE, "method": HOSTILE}
    folder = write_run(tmp_path, [{"pair": name, "dice": 80.0}, {"pair": "bad", "error": HOSTILE}], png(tmp_path))
    (folder / "settings.json").write_text(json.dumps(settings))

    page = Page(write_html_report(folder))

    assert len(page.all("script")) == 1
    assert [image["src"][:11] for image in page.all("img")] == ["data:image/"]
    assert page.all("b") == [{}] * len(page.all("b"))
    assert page.text.count(name) >= 3  # in the chart, the table and above the picture
    assert page.text.count(HOSTILE) >= 4
    assert name in next(header["data-value"] for header in page.all("th") if "data-value" in header)


def test_the_page_asks_for_nothing_outside_itself(tmp_path):
    path = write_html_report(write_run(tmp_path, [{"pair": "a", **measured(1)}], png(tmp_path)))
    page = Page(path)

    addresses = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert addresses
    assert all(re.match(r"data:image/jpeg;base64,|#|a/report\.png$", address) for address in addresses)
    assert not page.all("link")
    assert not re.search(r"@import|url\(", path.read_text(encoding="utf-8"))
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_link_inside_the_page_has_its_target(tmp_path):
    rows = [{"pair": f"p{i}", **measured(i)} for i in range(5)]
    folder = write_run(tmp_path, [*rows, {"pair": "bad", "error": "no such file"}], png(tmp_path))

    page = Page(write_html_report(folder, pictures=2))

    targets = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(targets) == len(set(targets))
    links = {link["href"] for link in page.all("a") if link["href"].startswith("#")}
    assert {"#failed", "#pair-6", "#picture-1"} <= links | {f"#{target}" for target in targets}
    assert {link[1:] for link in links} <= set(targets)
    assert len(page.all("img")) == 2
    labels = {name for _, attributes in page.elements for name in (attributes.get("aria-labelledby") or "").split()}
    assert labels <= set(targets)


def test_headings_go_down_one_level_at_a_time_and_pictures_are_described(tmp_path):
    folder = write_run(tmp_path, [{"pair": f"p{i}", **measured(i)} for i in range(4)], png(tmp_path))
    page = Page(write_html_report(folder, pictures=3))

    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(image["alt"].startswith("Three planes of p") for image in page.all("img"))
    assert all(drawing["aria-label"].startswith("Distribution of ") for drawing in page.all("svg"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"pair": "only", "dice": 80.0, "dice_before": 60.0}], "1 pair none failed"),
        ([{"pair": "a"}, {"pair": "b"}], "Nothing was measured."),
        ([{"pair": "a", "error": "bad"}, {"pair": "b", "error": "worse"}], "2 failed"),
        ([{"pair": "a", "hd95": float("inf")}, {"pair": "b", "hd95": 2.0}], "HD95 – voxels"),
        ([{"pair": "a", "dice_before": 50.0, "error": "dice could not be measured"}], "Nothing was measured."),
        ([{"pair": "a", "own": 12345.678}], "own 1.235e+04"),
    ],
)
def test_unusual_runs_have_their_page(tmp_path, rows, words):
    assert words in Page(write_html_report(write_run(tmp_path, rows, summary=False))).words


def test_a_run_without_summary_is_called_unfinished(tmp_path):
    folder = write_run(tmp_path, [{"pair": "a", "dice": 80.0}], summary=False)
    assert "has not come to its end" in Page(write_html_report(folder)).words

    folder = write_run(tmp_path, [{"pair": "a", "dice": 80.0}])
    assert "has not come to its end" not in Page(write_html_report(folder)).words


def test_three_hundred_pairs_with_large_pictures_stay_below_15_mb(tmp_path):
    rows = [{"pair": f"p{i}", **measured(i)} for i in range(300)]
    folder = write_run(tmp_path / "run", rows)
    (tmp_path / "noise").mkdir()
    picture = tmp_path / "noise" / "report.png"
    picture.write_bytes(png(tmp_path, size=(1914, 843)))
    for row in rows:
        (folder / row["pair"]).symlink_to(picture.parent)

    path = write_html_report(folder)

    assert path.stat().st_size < 15e6
    page = Page(path)
    assert 1 <= len(page.all("img")) < 20
    assert len([link for link in page.all("a") if link["href"].endswith("/report.png")]) == 300


def test_a_page_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    folder = write_run(tmp_path, [{"pair": "a", "dice": 80.0}])
    (folder / "report.html").write_text("old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_html_report(folder)

    assert (folder / "report.html").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv", "report.html", "summary.json"]


def test_a_folder_in_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "run", [{"pair": "a", "dice": 80.0}])

    assert write_html_report("~/run") == tmp_path / "run" / "report.html"
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_negative_number_of_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pictures must be 0 or more, got -1\."):
        write_html_report(tmp_path, pictures=-1)
