# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest

from monai_reg_ext.metrics import LOWER_IS_BETTER, rank_scores


def test_the_score_is_the_geometric_mean_of_ranks_spread_from_one_to_a_tenth():
    # four candidates: ranks 1, 2, 3, 4 score 1, 0.7, 0.4, 0.1
    dice = [80.0, 70.0, 60.0, 75.0]  # 1st, 3rd, 4th, 2nd
    sdlogj = [0.06, 0.03, 0.04, 0.05]  # 4th, 1st, 2nd, 3rd

    scores = rank_scores({"dice": dice, "sdlogj": sdlogj})

    assert scores == pytest.approx([(1 * 0.1) ** 0.5, (0.4 * 1) ** 0.5, (0.1 * 0.7) ** 0.5, (0.7 * 0.4) ** 0.5])


def test_ties_share_the_mean_of_their_places():
    # places 2 and 3 of five: 1 - 0.9 * 1.5 / 4
    scores = rank_scores({"dice": [50, 70, 90, 70, 60]})

    assert scores == pytest.approx([0.1, 0.6625, 1, 0.6625, 0.325])


@pytest.mark.parametrize("name", LOWER_IS_BETTER)
def test_of_errors_the_lowest_is_best(name):
    assert rank_scores({name: [2.0, 1.0, 3.0]}) == pytest.approx([0.55, 1, 0.1])


@pytest.mark.parametrize("name", ["dice", "dice_hard"])
def test_of_overlaps_the_highest_is_best(name):
    assert rank_scores({name: [2.0, 1.0, 3.0]}) == pytest.approx([0.55, 0.1, 1])


@pytest.mark.parametrize(("name", "worst"), [("hd95", 30.0), ("dice", 0.0)])
def test_a_missing_value_ranks_last(name, worst):
    best = 1.0 if name == "hd95" else 99.0

    assert rank_scores({name: [math.nan, worst, best]}) == pytest.approx([0.1, 0.55, 1])


def test_infinitely_far_ranks_last_but_costs_no_more_than_one_metric():
    scores = rank_scores({"hd95": [math.inf, 3.0], "dice": [80.0, 70.0]})

    assert scores == pytest.approx([0.1**0.5, 0.1**0.5])


def test_a_single_candidate_is_the_best_one():
    assert rank_scores({"dice": [12.0], "tre_mm": [math.nan]}) == pytest.approx([1.0])


def test_candidates_that_are_all_alike_score_alike():
    assert rank_scores({"dice": [5.0] * 3, "hd95": [1.0] * 3}) == pytest.approx([0.55] * 3)
