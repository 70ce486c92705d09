# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from monai_reg_ext.data import pair_list, whole_file
from monai_reg_ext.data.error_line import error_line

__all__ = ["pairs_of_process", "pairs_or_exit", "prepare_output", "run_or_exit"]


def pairs_or_exit(
    fixed_spacing: Sequence[float] | None = None, moving_spacing: Sequence[float] | None = None, **inputs: Any
) -> list[dict[str, Any]]:
    """The pairs of a bundle's run; wrong input ends the process with one line instead of a traceback.

    Args:
        fixed_spacing: voxel size in mm that replaces the one in the header of every fixed image, where that is wrong.
        moving_spacing: likewise for the moving images.
        inputs: see :py:func:`monai_reg_ext.data.pair_list`.

    Raises:
        SystemExit: with the message of what is wrong.
    """
    corrections = {"fixed_spacing": fixed_spacing, "moving_spacing": moving_spacing}
    given = {key: spacing for key, spacing in corrections.items() if spacing is not None}
    try:
        return [{**pair, **given} for pair in pair_list(**inputs)]
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def pairs_of_process(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What this one of several processes registers: the processes take turns.

    Args:
        pairs: all of a run, in the same order in every process.

    Raises:
        SystemExit: when there are fewer pairs than processes; one without a pair could not join in the metrics.
    """
    processes = idist.get_world_size()
    if len(pairs) < processes:
        raise SystemExit(f"error: {processes} processes share {len(pairs)} pairs. Start so many processes at most.")
    return list(pairs[idist.get_rank() :: processes])


def prepare_output(output_dir: str | Path) -> None:
    """Make sure before any work is done that results can be written.

    Raises:
        SystemExit: when the folder cannot be made or written to.
    """
    try:
        with whole_file(Path(output_dir) / ".writable"):
            pass
        (Path(output_dir).expanduser() / ".writable").unlink()
    except OSError as error:
        raise SystemExit(f"error: {error}") from None


def run_or_exit(trainer: Any) -> Any:
    """Run a trainer; pairs that cannot be loaded or measured end the process with one line instead of a traceback.

    Raises:
        SystemExit: with the message of what is wrong.
    """
    try:
        return trainer.run()
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error_line(error)}") from None
