# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

__all__ = ["latest_checkpoint"]


def latest_checkpoint(ckpt_dir: str | Path) -> str | None:
    """The newest checkpoint of a training that was interrupted, or ``None`` to start anew.

    Args:
        ckpt_dir: folder whose ``*.pt`` all hold what a training needs to go on; it need not exist.
    """
    checkpoints = Path(ckpt_dir).expanduser().glob("*.pt")
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime_ns, default=None)
    return None if newest is None else str(newest)
