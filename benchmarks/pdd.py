# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Time and memory of the search over probabilities of displacements, ours beside the paper's way of writing it.

    python benchmarks/pdd.py --output_dir OUT

prints a table and writes it to ``OUT/pdd.md``. Linux only. Features are given. **forward** is from features to the
expected displacements of 29³ control points; **training** is one step with 32³, probabilities, the error of expected
labels and the gradients of the features. 15³ displacements. Every row is a process of its own, ``pdd_step.py``. The
other form (``pdd_forms.py``) samples slabs of control points by ``grid_sample``, pools padded volumes, and checkpoints
both.

**Peak MiB** is the most resident memory above that before the call, when the inputs were there and a small search had
been run. A form that asks for more than ``--limit_gib`` is stopped there. The last table says how far apart the forms'
results are on a small search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fire
from pdd_forms import FORMS, REFERENCE
from pdd_step import Search
from speed_meter import Cost, median
from training import MIB, in_new_process

WORKS = {"forward": {"points": 29, "channels": 24}, "training": {"points": 32, "channels": 16}}
AGREEMENT = {"points": 7, "labels": 5, "channels": 6, "classes": 4, "cells": (13, 11, 14)}


def main(
    cells: str = "64x56x80",
    labels: int = 15,
    points: int | None = None,
    classes: int = 4,
    forms: Sequence[str] = tuple(FORMS),
    works: Sequence[str] | str = tuple(WORKS),
    repeats: int = 3,
    threads: int = 2,
    limit_gib: float = 16,
    output_dir: str = "",
) -> None:
    """Measure, print, write.

    Args:
        cells: of the features, ``IxJxK``.
        labels: displacements along each axis.
        points: control points along each axis; by default 29 forward and 32 in training.
        classes: of the labels in training.
        forms: what is compared.
        works: ``forward``, ``training`` or both.
        repeats: of every call.
        threads: of torch and of the compiled kernels.
        limit_gib: memory that a form may ask for.
        output_dir: folder for the table; nothing is written without.
    """
    shared = {"cells": [int(extent) for extent in cells.split("x")], "labels": labels, "classes": classes}
    shared |= {"repeats": repeats, "threads": threads, "limit": int(limit_gib * 2**30)}
    lines = ["| work | points | form | peak MiB | CPU s | wall s |", "|" + "---|" * 6]
    for work in [works] if isinstance(works, str) else works:
        settings = {**WORKS[work], **({} if points is None else {"points": points})}
        for form in [forms] if isinstance(forms, str) else forms:
            outcome = in_new_process({"search": form, "work": work, **settings, **shared}, script="pdd_step.py")
            lines.append(_line(work, settings["points"], form, outcome))
            print(lines[-1], flush=True)
    text = "\n".join([*lines, "", *agreement()]) + "\n"
    print(text)
    if output_dir:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pdd.md").write_text(text)


def _line(work: str, points: int, form: str, outcome: dict[str, Any]) -> str:
    if not outcome["costs"]:
        measured = [f"> {outcome['limit'] / MIB:.0f}", "–", "–"]
    else:
        cost = median(Cost(*one) for one in outcome["costs"])
        measured = [f"{cost.peak / MIB:.0f}", f"{cost.cpu:.3g}", f"{cost.wall:.3g}"]
    return f"| {work} | {points}³ | {form} | {' | '.join(measured)} |"


def agreement() -> Iterator[str]:
    """Largest difference of our field and gradient from the reference's, divided by the largest value."""
    yield f"| ours compared with {REFERENCE} | largest difference |"
    yield "|---|---|"
    for work, what in (("forward", "field"), ("training", "gradient")):
        one, other = (Search(FORMS[name], work, **AGREEMENT)() for name in ("ours", REFERENCE))
        yield f"| {what} | {(one - other).abs().max() / other.abs().max():.1e} |"


if __name__ == "__main__":
    fire.Fire(main)
