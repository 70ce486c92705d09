# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from monai_reg_ext.apps.config_leaves import config_leaves


def test_plain_values_are_found_by_their_ids():
    config = {"a": {"b": [1, {"c": None}], "d": {}}, "e": "text", "f": []}

    assert config_leaves(config) == {"a#b#0": 1, "a#b#1#c": None, "a#d": {}, "e": "text", "f": []}
