# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require_packages"]


def require_packages(extra: str = "train", **wanted: bool) -> None:
    """Make sure before any work is done that packages which options ask for are installed.

    Args:
        extra: the package's extra that installs them.
        wanted: whether a package is needed, by its name.

    Raises:
        SystemExit: when one is not there.
    """
    missing = [name for name, needed in wanted.items() if needed and find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"error: {' and '.join(missing)} is asked for but not installed. Install it, pip install "
            f"'monai-reg-ext[{extra}]', or leave out the option that asks for it."
        )
