# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["config_leaves"]


def config_leaves(config: Any, key: str = "") -> dict[str, Any]:
    """The plain values of nested dictionaries and lists by their ids, ``network_def#refiner#iterations``."""
    items: Sequence = ()
    if isinstance(config, dict):
        items = tuple(config.items())
    elif isinstance(config, list):
        items = tuple(enumerate(config))
    if not items:
        return {key: config}
    return {
        leaf: value
        for part, content in items
        for leaf, value in config_leaves(content, f"{key}#{part}" if key else str(part)).items()
    }
