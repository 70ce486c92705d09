# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import os
from importlib import import_module

import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from monai_reg_ext.handlers import ReportHandler

SIZE = (10, 12, 8)
AFFINE = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))


def volume() -> MetaTensor:
    return MetaTensor(torch.rand(1, *SIZE), affine=AFFINE)


def batch_item(name: str) -> dict:
    return {"pair": name, "fixed": volume(), "moving": volume()}


def output_item() -> dict:
    return {"warped": volume(), "pred": MetaTensor(torch.zeros(3, *SIZE), affine=AFFINE)}


def run(output_dir, *iterations) -> list[dict]:
    """Outputs of an engine whose every iteration has a decollated batch and its output."""
    outputs = []

    def step(engine, iteration):
        engine.state.batch, output = iteration
        outputs.extend(output)
        return output

    engine = Engine(step)
    ReportHandler(output_dir).attach(engine)
    engine.run(iterations)
    return outputs


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_pair_of_every_batch_gets_its_report(tmp_path):
    first = ([batch_item("a__b"), batch_item("c__d")], [output_item(), output_item()])
    second = ([batch_item("e__f")], [output_item()])

    outputs = run(tmp_path / "new" / "run", first, second)

    assert files(tmp_path) == [f"new/run/{name}/report.png" for name in ("a__b", "c__d", "e__f")]
    for name in files(tmp_path):
        with Image.open(tmp_path / name) as image:
            image.load()
    assert not any("error" in output for output in outputs)


def test_the_report_shows_the_pair_with_its_metrics_and_labels(tmp_path, monkeypatch):
    drawn = {}

    def record(fixed, moving, warped, ddf, **options):
        drawn.update(fixed=fixed, moving=moving, warped=warped, ddf=ddf, **options)
        return original(fixed, moving, warped, ddf, **options)

    module = import_module("monai_reg_ext.handlers.report_png")
    original = module.report_figure
    monkeypatch.setattr(module, "report_figure", record)
    label, metrics = (volume() > 0.5).int(), {"sdlogj": 0.25}
    item = {**batch_item("a__b"), "fixed_label": label, "warped": "replaced by the output"}
    output = {**output_item(), "warped_label": label, "metrics": metrics}

    run(tmp_path, ([item], [output]))

    expected = {**item, **output, "ddf": output["pred"], "title": "a__b", "affine": item["fixed"].affine}
    assert drawn.pop("affine").tolist() == AFFINE.tolist()
    assert all(value is expected[key] for key, value in drawn.items())
    assert set(drawn) == {"fixed", "moving", "warped", "ddf", "metrics", "title", "fixed_label", "warped_label"}


def test_pairs_that_failed_before_have_no_report(tmp_path):
    failed = {"pair": "failed", "error": "no such file"}
    unregistered = (batch_item("unregistered"), {"warped": volume()})
    wrong = (batch_item("wrong"), {**output_item(), "error": "measured badly"})
    batch, outputs = zip((failed, {}), unregistered, wrong, (batch_item("good"), output_item()), strict=True)

    outputs = run(tmp_path, (list(batch), list(outputs)), ([failed], []))

    assert files(tmp_path) == ["good/report.png"]
    assert [output.get("error") for output in outputs] == [None, None, "measured badly", None]


def test_a_report_that_cannot_be_drawn_is_recorded_and_the_run_goes_on(tmp_path, caplog):
    coarse = {**output_item(), "pred": torch.zeros(3, 5, 6, 4)}
    unwarped = {"pred": output_item()["pred"]}
    batch = [batch_item("coarse"), batch_item("unwarped"), batch_item("good")]

    with caplog.at_level(logging.ERROR):
        outputs = run(tmp_path, (batch, [coarse, unwarped, output_item()]))

    assert files(tmp_path) == ["good/report.png"]
    assert outputs[0]["error"].startswith("report.png could not be made: ddf must be on the grid of fixed")
    assert outputs[1]["error"].startswith("report.png could not be made: it needs warped")
    assert "error" not in outputs[2]
    assert "coarse: report.png could not be made" in caplog.text


def test_a_report_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    old = tmp_path / "a__b" / "report.png"
    old.parent.mkdir()
    old.write_text("old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    (output,) = run(tmp_path, ([batch_item("a__b")], [output_item()]))

    assert output["error"] == "report.png could not be made: disk full"
    assert files(tmp_path) == ["a__b/report.png"]
    assert old.read_text() == "old"


def test_an_output_folder_in_the_home_directory_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))

    run("~/reports", ([batch_item("a__b")], [output_item()]))

    assert files(tmp_path) == ["reports/a__b/report.png"]
