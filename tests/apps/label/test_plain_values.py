# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.apps.label.plain_values import first_choice, plain_value


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("auto", "auto"),
        ("2.5", 2.5),
        ("[2, 2, 3]", [2, 2, 3]),
        (True, True),
        (None, None),
        ({"epochs": 3}, {"epochs": 3}),
    ],
)
def test_numbers_and_words_pass_and_text_of_panels_becomes_numbers(given, value):
    assert plain_value("spacing", given) == value


EXPRESSIONS = ["$__import__('os').getcwd()", "@output_dir", "%train.json#a", "['$1']", ["auto", "$1"], {"epochs": "$1"}]
FILES = ["/etc/passwd", "field.nii.gz", ""]
PARTS = [{"_target_": "Compose"}, {"_disabled_": True}]  # a config would build or remove these


@pytest.mark.parametrize("given", [*EXPRESSIONS, *FILES, *PARTS])
def test_what_a_config_would_evaluate_open_or_build_is_refused(given):
    with pytest.raises(ValueError, match="spacing must be a number or a single word"):
        plain_value("spacing", given)


def test_the_first_of_a_list_that_was_offered_is_the_default():
    assert first_choice(["local", "majority"]) == "local"
    assert first_choice("majority") == "majority"
    assert first_choice([]) == []
