# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import torch

import monai_reg_ext
from monai_reg_ext.apps.html_report_settings import settings_tables, versions_now


def test_settings_are_lines_with_the_ids_of_a_config_a_table_for_each_dictionary():
    settings = {
        "method": "convex_adam",
        "config": {"spacing": [1, 1, 2], "network_def": {"passes": 2, "refiner": {}}, "initial": None},
        "limit": None,
        "versions": {"Pytorch": "0.0"},
    }

    assert settings_tables(settings) == [
        ("Run", [("method", "convex_adam"), ("limit", "null")]),
        (
            "Config",
            [
                ("spacing", "[1, 1, 2]"),
                ("network_def#passes", "2"),
                ("network_def#refiner", "{}"),
                ("initial", "null"),
            ],
        ),
        ("Versions", [("Pytorch", "0.0")]),
    ]


def test_without_versions_of_the_run_the_heading_says_whose_they_are():
    ((title, lines),) = settings_tables({})

    assert title == "Versions when this page was written"
    assert dict(lines) == versions_now()


def test_versions_are_those_of_what_runs_here():
    versions = versions_now()

    assert versions["monai_reg_ext"] == monai_reg_ext.__version__
    assert versions["Pytorch"] == torch.__version__
    assert versions["Machine"].endswith("processor cores")


def test_a_long_value_is_cut_and_says_so():
    files = ["scan.nii.gz"] * 1000
    ((_, ((_, text),)), _) = settings_tables({"files": files})

    assert len(text) < 500
    assert text.endswith(f"… ({len(json.dumps(files))} characters, all in settings.json)")
