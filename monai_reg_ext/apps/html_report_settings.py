# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from monai.config import get_config_values

import monai_reg_ext

__all__ = ["settings_tables", "versions_now"]

LONGEST_VALUE = 400  # characters


def settings_tables(settings: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of ids and values with their headings: one for each dictionary in the settings, and one for the rest.

    Ids are those of MONAI's configs, ``network_def#refiner#iterations``. Where the settings say nothing about
    ``versions``, those of this process stand there, and the heading says so.
    """
    dictionaries = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    tables = {"": {key: value for key, value in settings.items() if key not in dictionaries}, **dictionaries}
    named = [(key.capitalize() or "Run", table) for key, table in tables.items() if table]
    if "versions" not in tables:
        named.append(("Versions when this page was written", versions_now()))
    return [(name, [(key, _shorten(text)) for key, text in _flatten(table)]) for name, table in named]


def versions_now() -> dict[str, str]:
    """The software and the machine that this process runs on."""
    versions = {"monai_reg_ext": monai_reg_ext.__version__, **get_config_values(), "Python": platform.python_version()}
    versions["Machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores"
    if torch.cuda.is_available():
        versions["GPU"] = torch.cuda.get_device_name()
    return {name: str(version) for name, version in versions.items()}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}#")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text


def _shorten(text: str) -> str:
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[:LONGEST_VALUE]}… ({len(text)} characters, all in settings.json)"
