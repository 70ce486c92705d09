# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from monai_reg_ext.apps.html_report_chart import distribution_chart
from monai_reg_ext.apps.html_report_metric import report_metric
from monai_reg_ext.apps.html_report_run import ReportPair

DICE = report_metric("dice")


def pairs_with(**columns) -> list[ReportPair]:
    rows = zip(*columns.values(), strict=True)
    measured = [{key: value for key, value in zip(columns, row, strict=True) if value is not None} for row in rows]
    return [ReportPair(i, f"pair {i}", values, "", None) for i, values in enumerate(measured, start=1)]


def values_at(chart, places) -> list[float]:
    """What the axis says about places: linear between its first and its last tick."""
    (first, low), *_, (last, high) = ((x, float(label)) for x, label in chart.ticks)
    return [low + (high - low) * (x - first) / (last - first) for x in places]


def test_every_pair_stands_at_its_value_before_and_after():
    before, after = [51.0, 62.5, 60.0, 40.25], [80.0, 61.0, 90.75, 80.0]
    chart = distribution_chart(DICE, pairs_with(dice_before=before, dice=after))

    assert [row.name for row in chart.rows] == ["before", "after"]
    for row, values in zip(chart.rows, (before, after), strict=True):
        dots = sorted(row.dots, key=lambda dot: dot.pair.number)
        assert values_at(chart, [dot.x for dot in dots]) == pytest.approx(values, abs=0.01)
        assert [dot.text for dot in dots] == [DICE.text(value) for value in values]
    medians = values_at(chart, [row.median for row in chart.rows])
    assert medians == pytest.approx([(51 + 60) / 2, 80.0], abs=0.01)


def test_lines_join_the_two_dots_of_a_pair_and_tell_which_got_worse():
    pairs = pairs_with(dice_before=[50.0, 70.0, 60.0, None, 80.0], dice=[60.0, 65.0, 60.0, 75.0, None])
    chart = distribution_chart(DICE, pairs)

    assert [(first.pair.number, second.pair.number) for first, second, _ in chart.moved] == [(1, 1), (3, 3), (2, 2)]
    assert [worse for *_, worse in chart.moved] == [False, False, True]
    assert chart.worse == 1
    for first, second, _ in chart.moved:
        values = values_at(chart, [first.x, second.x])
        assert values == pytest.approx([first.pair.values["dice_before"], first.pair.values["dice"]], abs=0.01)


@pytest.mark.parametrize("count", [1, 7, 40, 300])
def test_dots_stay_in_their_row_and_as_long_as_there_is_room_beside_each_other(count):
    values = np.random.default_rng(0).normal(70, 8, count).tolist()
    chart = distribution_chart(DICE, pairs_with(dice_before=values, dice=[value + 5 for value in values]))

    for row in chart.rows:
        assert all(row.top <= dot.y - chart.radius and dot.y + chart.radius <= row.bottom for dot in row.dots)
        stacks: dict[int, list[float]] = {}
        for dot in row.dots:
            stacks.setdefault(round(dot.x / (2 * chart.radius)), []).append(dot.y)
        gaps = [b - a for stack in stacks.values() for a, b in itertools.pairwise(sorted(stack))]
        assert all(gap >= 2 * chart.radius - 0.02 for gap in gaps)
    assert chart.rows[0].bottom < chart.rows[1].top
    assert chart.rows[1].bottom < chart.axis < chart.size[1]


def test_more_dots_than_find_room_close_up_in_their_row():
    chart = distribution_chart(report_metric("folding_percent"), pairs_with(folding_percent=[0.0] * 300))

    (row,) = chart.rows
    assert len({dot.y for dot in row.dots}) == 300
    assert min(dot.y for dot in row.dots) >= row.top
    assert max(dot.y for dot in row.dots) <= row.bottom


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.04, 100.0, -3.0])
def test_equal_values_have_an_axis_around_them(value):
    chart = distribution_chart(report_metric("sdlogj"), pairs_with(sdlogj=[value, value]))

    (row,) = chart.rows
    assert len(chart.ticks) >= 2
    assert values_at(chart, [row.median]) == pytest.approx([value], rel=0.01, abs=0.01 * abs(value) + 0.003)
    assert chart.ticks[0][0] <= row.median <= chart.ticks[-1][0]


def test_shares_that_are_all_zero_have_no_negative_side():
    chart = distribution_chart(report_metric("folding_percent"), pairs_with(folding_percent=[0.0, 0.0]))

    assert chart.ticks[0][1] == "0"


def test_infinite_values_are_left_out():
    chart = distribution_chart(report_metric("hd95"), pairs_with(hd95=[1.5, math.inf, 2.5]))

    assert [dot.pair.number for dot in chart.rows[0].dots] == [1, 3]


def test_without_a_finite_value_there_is_no_chart():
    assert distribution_chart(report_metric("hd95"), pairs_with(hd95=[math.inf])) is None
    assert distribution_chart(DICE, pairs_with(dice_before=[50.0], hd95=[1.0])) is None
