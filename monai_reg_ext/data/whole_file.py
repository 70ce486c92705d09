# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A file that appears whole or not at all.

    Gives a temporary path beside ``path`` with the same suffixes, to be written by the caller; it takes the place of
    ``path`` when the block ends, and is removed when the block fails. The folder is made if need be.

    Raises:
        OSError: when the folder cannot be written to.
    """
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".unfinished_", suffix=f"_{path.name}", dir=path.parent)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}). Give a folder that can be written and has space."
        ) from None
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o666 & ~_umask())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
