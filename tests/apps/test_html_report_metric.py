# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.apps.html_report_metric import KNOWN, report_metric
from monai_reg_ext.handlers.report_figure import CAPTION


def test_a_metric_has_the_words_digits_and_unit_of_a_pairs_own_page():
    for name, word, digits, unit in CAPTION:
        metric = report_metric(name)

        assert metric.label.lower() == word.lower()
        assert (metric.digits, metric.unit) == (digits, unit.strip())


def test_a_measure_before_registration_is_shown_like_the_one_after():
    before, after = report_metric("tre_mm_before"), report_metric("tre_mm")

    assert before.label == "TRE before"
    assert (before.digits, before.unit) == (after.digits, after.unit)
    assert (before.is_before, after.is_before) == (True, False)
    assert after.before == before.name


def test_a_column_of_somebody_else_keeps_its_name_and_claims_nothing():
    metric = report_metric("surface_overlap_before")

    assert metric.label == "surface_overlap before"
    assert (metric.unit, metric.meaning, metric.higher_is_better) == ("", "", None)
    assert metric.text(1234.5678) == "1235"
    assert not metric.is_worse(1.0, than=2.0)
    assert not metric.is_worse(2.0, than=1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00"), (0.004, "< 0.01"), (0.006, "0.01"), (-0.25, "-0.25"), (float("inf"), "inf")],
)
def test_a_small_share_of_folding_does_not_read_as_none(value, text):
    assert report_metric("folding_percent").text(value) == text


def test_a_lower_dice_and_a_higher_distance_are_worse():
    dice, distance = report_metric("dice"), report_metric("tre_mm")

    assert dice.is_worse(60.0, than=61.0)
    assert distance.is_worse(2.0, than=1.0)
    assert not any(metric.is_worse(1.0, than=1.0) for metric in (dice, distance))
    assert not dice.is_worse(61.0, than=60.0)
    assert not distance.is_worse(1.0, than=2.0)


def test_every_metric_of_ours_is_explained():
    assert all(report_metric(name).meaning.endswith(".") for name, *_ in KNOWN)
