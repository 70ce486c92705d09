# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import logging
from importlib import import_module
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from monai.data import MetaTensor
from PIL import Image

from monai_reg_ext.handlers import ValidationPicture

SIZE = (14, 20, 10)
AFFINE = torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
SHIFT = 4  # voxels along the second axis


def box(start: int) -> MetaTensor:
    """A bright box on a dark ramp, from ``start`` along the second axis."""
    image = torch.linspace(0, 0.2, SIZE[2]).expand(1, *SIZE).clone()
    image[:, 4:10, start : start + 6, 3:8] = 1.0
    return MetaTensor(image, affine=AFFINE)


def pair(name: str, warped: MetaTensor | None = None, **more) -> tuple[dict, dict]:
    """Batch item and output item of a pair that registration aligns exactly, unless ``warped`` is another image."""
    item = {"pair": name, "fixed": box(5), "moving": box(5 + SHIFT)}
    ddf = torch.zeros(3, *SIZE)
    ddf[1] = SHIFT
    return item, {"warped": box(5) if warped is None else warped, "pred": MetaTensor(ddf, affine=AFFINE), **more}


def validate(handler: ValidationPicture, *batches: list[tuple[dict, dict]], epochs: int = 1) -> list:
    """Run an engine whose iterations have decollated batches and outputs; its outputs."""
    outputs = []

    def step(engine, batch):
        engine.state.batch = [item for item, _ in batch]
        outputs.extend(output for _, output in batch)
        return [output for _, output in batch]

    engine = Engine(step)
    handler.attach(engine)
    engine.run(batches, max_epochs=epochs)
    return outputs


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are drawn from now on."""
    module, drawn = import_module("monai_reg_ext.handlers.report_png"), []

    def record(*arguments, **options):
        drawn.append(original(*arguments, **options))
        return drawn[-1]

    original = module.report_figure
    monkeypatch.setattr(module, "report_figure", record)
    return drawn


def titles(figures: list[Figure]) -> list[str]:
    return [figure.texts[0].get_text() for figure in figures]


@pytest.mark.parametrize(("chosen", "name"), [(0, "a__b"), (2, "e__f"), ("c__d", "c__d")])
def test_every_validation_draws_the_same_pair_given_by_position_or_name(tmp_path, figures, chosen, name):
    batches = [pair("a__b"), pair("c__d")], [pair("e__f")]

    validate(ValidationPicture(tmp_path / "new" / "run", chosen), *batches, epochs=2)

    assert files(tmp_path) == ["new/run/pictures/epoch_0001.png", "new/run/pictures/epoch_0002.png"]
    assert titles(figures) == [f"{name}, epoch 1", f"{name}, epoch 2"]


def test_the_picture_shows_the_pair_before_and_after_registration(tmp_path, figures):
    validate(ValidationPicture(tmp_path), [pair("a__b")])

    panels = [axes for axes in figures[0].axes if axes.images]
    fixed, moving, warped, before, after, _ = (panels[i].images[0].get_array() for i in range(6))
    np.testing.assert_array_equal(warped, fixed)
    np.testing.assert_array_equal(after, 0)
    # axial panels run from anterior to posterior, the positive end of the second axis first
    np.testing.assert_allclose(moving[:-SHIFT], fixed[SHIFT:], atol=1e-6)
    np.testing.assert_allclose(before, fixed - moving)
    assert abs(before).max() > 0.5


def test_metrics_are_the_caption_and_labels_are_outlined_where_there_are_any(tmp_path, figures):
    label = (box(5) > 0.5).int()
    item, output = pair("a__b", metrics={"dice": 80.0, "dice_before": 20.0}, warped_label=label)

    validate(ValidationPicture(tmp_path), [({**item, "fixed_label": label}, output)])
    validate(ValidationPicture(tmp_path), [pair("a__b")])

    with_labels, without = ({text.get_text() for text in figure.texts} for figure in figures)
    assert {"Dice 20.0 → 80.0 %", "━ fixed labels", "━ warped labels"} <= with_labels
    assert not {"━ fixed labels", "━ warped labels"} & without


def test_the_picture_is_small_and_unknown_to_pyplot(tmp_path):
    validate(ValidationPicture(tmp_path), [pair("a__b")])

    with Image.open(tmp_path / "pictures" / "epoch_0001.png") as image:
        assert max(image.size) < 1100
    assert plt.get_fignums() == []


def test_tensorboard_gets_the_pixels_of_the_file(tmp_path):
    calls = []
    writer = SimpleNamespace(add_image=lambda *call, **more: calls.append((*call, more)), flush=lambda: calls.append(0))

    validate(ValidationPicture(tmp_path, writer=writer), [pair("a__b")], [pair("c__d")])

    ((tag, pixels, step, options), flushed) = calls
    assert (tag, step, options, flushed) == ("validation_pair", 1, {"dataformats": "HWC"}, 0)
    with Image.open(io.BytesIO((tmp_path / "pictures" / "epoch_0001.png").read_bytes())) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image)[..., :3])
    assert pixels.dtype == np.uint8


def test_mlflow_gets_the_file_as_an_artifact_of_its_run(tmp_path):
    artifacts = []
    handler = SimpleNamespace(
        client=SimpleNamespace(log_artifact=lambda *call: artifacts.append(call)),
        cur_run=SimpleNamespace(info=SimpleNamespace(run_id="run")),
    )

    validate(ValidationPicture(tmp_path, mlflow_handler=handler), [pair("a__b")])

    assert artifacts == [("run", str(tmp_path / "pictures" / "epoch_0001.png"), "pictures")]


def unreachable(*_):
    raise OSError("server unreachable")


PROBLEMS = {
    "ddf must be on the grid of fixed": ({}, [(pair("a__b")[0], {**pair("a__b")[1], "pred": torch.zeros(3, 4, 5, 6)})]),
    "it needs warped": ({}, [(pair("a__b")[0], {"pred": pair("a__b")[1]["pred"]})]),
    "it needs pair, pred": ({}, [({"fixed": box(5), "moving": box(9)}, {"warped": box(5)})]),
    "has no run": ({"mlflow_handler": SimpleNamespace(cur_run=None)}, [pair("a__b")]),
    "server unreachable": (
        {
            "mlflow_handler": SimpleNamespace(
                client=SimpleNamespace(log_artifact=unreachable),
                cur_run=SimpleNamespace(info=SimpleNamespace(run_id="run")),
            )
        },
        [pair("a__b")],
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_picture_that_fails_is_a_warning_and_the_validation_goes_on(tmp_path, caplog, problem):
    options, batch = PROBLEMS[problem]

    with caplog.at_level(logging.WARNING):
        outputs = validate(ValidationPicture(tmp_path, **options), batch, [pair("c__d")], epochs=2)

    assert len(outputs) == 4
    assert not any("error" in output for output in outputs)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all("no picture: " in warning and problem in warning for warning in warnings)
    assert not any(name.startswith(".unfinished") for name in files(tmp_path))


def test_a_pair_that_is_not_there_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        validate(ValidationPicture(tmp_path, "e__f"), [pair("a__b")], [pair("c__d")])

    assert [record.getMessage() for record in caplog.records] == ["no picture: there is no pair 'e__f' among the 2."]
    assert files(tmp_path) == []
