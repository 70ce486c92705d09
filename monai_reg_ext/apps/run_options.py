# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_reg_ext.apps.bundle_run import INPUT_IDS, PLACE_IDS
from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.usage_error import UsageError

__all__ = ["is_measurable", "split_options"]


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What belongs to a pair of scans, and what overrides a value of the bundle's config.

    Raises:
        UsageError: for an id of the config that the command line has other words for.
    """
    taken = [key for key in options if key in PLACE_IDS]
    if taken:
        raise UsageError(f"no option --{taken[0]}: the command's own arguments say what is registered, and where to.")
    inputs = {key: value for key, value in options.items() if key in INPUT_IDS}
    paths = {key: str(value) for key, value in inputs.items() if not key.endswith(("_spacing", "_space"))}
    overrides = {key: value for key, value in options.items() if key not in INPUT_IDS}
    if isinstance(overrides.get("initial"), str):
        files = file_list(overrides["initial"])
        overrides["initial"] = files[0] if len(files) == 1 else files
    return {**inputs, **paths}, overrides


def is_measurable(pair: Mapping[str, Any]) -> bool:
    """Whether both sides have labels, or both have points."""
    return any({f"fixed_{kind}", f"moving_{kind}"} <= pair.keys() for kind in ("label", "points"))
