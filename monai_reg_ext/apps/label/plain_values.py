# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import contextlib
import re
from typing import Any

__all__ = ["first_choice", "plain_value"]

WORD = re.compile(r"[A-Za-z][A-Za-z_]*")


def plain_value(name: str, value: Any) -> Any:
    """A value for a bundle's config that comes from outside, as numbers, single words, lists or dictionaries of these.

    Anything else the config might evaluate or open, and whoever sends a request must not run code or read files. Panels
    of viewers send text; where it reads as numbers it becomes these.

    Args:
        name: how errors name the value.
        value: as it came.

    Raises:
        ValueError: for any other value.
    """
    if isinstance(value, str) and not WORD.fullmatch(value):
        with contextlib.suppress(ValueError, SyntaxError):
            return plain_value(name, ast.literal_eval(value.strip()))
    if isinstance(value, (list, tuple)):
        return [plain_value(name, item) for item in value]
    if isinstance(value, dict):
        return {plain_value(name, key): plain_value(name, item) for key, item in value.items()}
    if value is None or isinstance(value, (int, float)) or (isinstance(value, str) and WORD.fullmatch(value)):
        return value
    raise ValueError(f"{name} must be a number or a single word, or a list of them, got {value!r}.")


def first_choice(value: Any) -> Any:
    """A client may send the whole list that it was offered in place of one of its items; the first is the default."""
    return value[0] if isinstance(value, list) and value else value
