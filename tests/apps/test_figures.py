# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

from monai_reg_ext.apps.figures import figures_block, figures_line


def test_figures_stand_beside_those_before_and_what_does_not_apply_is_left_out():
    summary = {"method": "m", "pairs": 2, "dice": 80.123456, "dice_before": 50.0, "hd95": None, "tre_mm": 1.5}

    lines = [line.split() for line in figures_block(summary).splitlines()]

    assert lines == [["dice", "80.12", "%", "(before:", "50)"], ["tre_mm", "1.5", "mm"]]


def test_a_pairs_line_holds_its_figures_or_its_error():
    row = {"pair": "a", "dice": 80.123456, "dice_before": 50.0, "seconds": math.nan, "error": ""}

    assert figures_line(row) == "dice 80.12"
    assert figures_line({**row, "seconds": 2.0}) == "dice 80.12, seconds 2"
    assert figures_line({"pair": "a", "error": "no file."}) == "failed: no file."
