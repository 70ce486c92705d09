# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

__all__ = ["copy_bundle"]

RESULTS = ("eval", "__pycache__")  # what runs leave in a bundle's folder


def copy_bundle(bundle: Path, folder: str | Path) -> Path:
    """A copy of a bundle without the results of runs; it appears whole or not at all.

    Args:
        bundle: folder of the bundle.
        folder: of the copy; it does not exist or is empty.

    Raises:
        ValueError: when the folder has content.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already. Give a new folder for the copy.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished_") as unfinished:
        copy = Path(unfinished) / folder.name
        shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns(*RESULTS))
        copy.replace(folder)
    return folder
