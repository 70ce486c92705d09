# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from monai.utils import optional_import

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
_, has_fire = optional_import("fire")

SMALL = {"points": 5, "labels": 3, "channels": 4, "classes": 3, "cells": (11, 9, 10)}


@pytest.fixture
def scripts(monkeypatch, bundles_dir) -> SimpleNamespace:
    if not has_fire:
        pytest.skip("fire is not installed")
    # to compile the kernels would take longer than the test
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    import pdd
    import pdd_forms
    import pdd_step

    return SimpleNamespace(pdd=pdd, forms=pdd_forms.FORMS, step=pdd_step)


@pytest.mark.parametrize("work", ["forward", "training"])
def test_both_forms_have_the_same_result(scripts, work):
    ours, reference = (scripts.step.Search(form, work, **SMALL)() for form in scripts.forms.values())

    assert ours.shape == reference.shape == ((1, 3, 5, 5, 5) if work == "forward" else (2, 1, 4, 11, 9, 10))
    assert (ours - reference).abs().max() < 1e-4 * reference.abs().max()


def test_features_of_a_training_step_learn_and_those_of_a_forward_do_not(scripts):
    form = next(iter(scripts.forms.values()))

    assert not scripts.step.Search(form, "forward", **SMALL)().requires_grad
    assert scripts.step.Search(form, "training", **SMALL)().abs().max() > 0


def test_a_small_run_prints_and_writes_both_tables(scripts, tmp_path, capsys):
    scripts.pdd.main("11x9x10", labels=3, points=4, repeats=1, threads=1, output_dir=str(tmp_path / "out"))

    text = (tmp_path / "out" / "pdd.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "| 4³ |" in line]
    assert [row[:3] for row in rows] == [
        [work, "4³", form] for work in ("forward", "training") for form in scripts.forms
    ]
    assert all(float(row[5]) > 0 for row in rows)
    assert len([line for line in text.splitlines() if line.startswith(("| field |", "| gradient |"))]) == 2


def test_a_form_that_asks_for_more_than_the_limit_has_no_times(scripts):
    outcome = {"limit": 5 << 20, "costs": []}

    assert scripts.pdd._line("training", 7, "ours", outcome) == "| training | 7³ | ours | > 5 | – | – |"
