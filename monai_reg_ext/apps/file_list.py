# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["file_list"]


def file_list(given: Any) -> list[str]:
    """Paths that a command line gives in one argument: with commas between them, or as a list ``"['a','b']"``.

    A file whose name has commas counts as one when it exists.
    """
    if given is None or given == "":
        return []
    if isinstance(given, (list, tuple)):
        return [str(path) for path in given]
    if Path(str(given)).expanduser().exists():
        return [str(given)]
    return [path.strip() for path in str(given).strip("[]()").split(",") if path.strip()]
