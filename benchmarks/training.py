# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Memory and time of a training step through the soft search, ours beside two forms written with plain autograd.

    python benchmarks/training.py --output_dir OUT

prints a table and writes it to ``OUT/training.md``. Linux only. A step is forward and backward of the fusion network
26-32-32-15 on pooled features of both images, the soft coupled convex search, and the mean squared error of a warped
one-hot map of 14 classes at the control grid (``training_step.py``). Every row is a process of its own. The searches
(``training_searches.py``):

- **ours**: the costs are kept, within the default budget of 1 GiB, the gradient is written down.
- **ours, nothing kept**: ``memory=0``, costs are computed anew whenever they are looked at.
- **no search**: the field is the difference of three features; what network and loss take in every row.
- **autograd, displacements one by one**: the cost volume is built one displacement at a time, differences are
  checkpointed; everything after it is autograd over whole volumes.
- **autograd, unfolded**: as public 2-D code does it, differences of all displacements at once.

**Peak MiB** is the most resident memory above that before the step, when the inputs and the network were there and a
small step had been run. The C library was told to give every freed tensor back at once; **with holes** is the same in
another process, the one that is timed, without telling it so: it then keeps what lies between other tensors. A form
that asks for more than ``--limit_gib`` is stopped there and has no times. Ratios divide by ours. The last table says
how far apart the gradients of the weights are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import fire
import torch
from speed_meter import Cost, median
from training_searches import NO_SEARCH, REFERENCE, SEARCHES
from training_step import TrainingStep

from monai_reg_ext.networks.layers import COUPLINGS

AGREEMENT_SIZE = (12, 14, 11)
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes; read by the C library
MIB = 1 << 20


class Row(NamedTuple):
    """One measured form; where it asked for more than the limit, in bytes, there is no peak, and no cost."""

    size: tuple[int, ...]
    searches: int
    name: str
    limit: int
    peak: int | None = None
    cost: Cost | None = None


def main(
    sizes: Sequence[str] | str = ("48x40x64", "48x40x32"),
    searches: Sequence[int] | int = (1, 1 + len(COUPLINGS)),
    half_width: int = 4,
    repeats: int = 3,
    threads: int = 2,
    limit_gib: float = 16,
    output_dir: str = "",
) -> None:
    """Measure, print, write.

    Args:
        sizes: control points, ``IxJxK``.
        searches: how often the search runs, once and then once for each of the first so many couplings.
        half_width: of the window, in cells.
        repeats: of every step.
        threads: of torch and of the compiled kernels.
        limit_gib: memory that a form may ask for.
        output_dir: folder for the table; nothing is written without.
    """
    grids = [tuple(int(extent) for extent in size.split("x")) for size in _listed(sizes)]
    settings = {"half_width": half_width, "repeats": repeats, "threads": threads, "limit": int(limit_gib * 2**30)}
    rows = []
    for size in grids:
        for count in _listed(searches):
            for name in SEARCHES:
                rows.append(_row(size, int(count), name, settings))
                print(_line(rows[-1], rows[-1]), flush=True)
    text = "\n".join([*table(rows), "", *agreement(half_width, AGREEMENT_SIZE)]) + "\n"
    print(text)
    if output_dir:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "training.md").write_text(text)


def _row(size: tuple[int, ...], count: int, name: str, settings: dict[str, Any]) -> Row:
    arguments = {**settings, "search": name, "size": size, "couplings": COUPLINGS[: count - 1]}
    outcome = in_new_process({**arguments, "repeats": 1}, GIVE_BACK)
    row = Row(size, count, name, outcome["limit"])
    if not outcome["costs"]:
        return row
    ((_, _, peak),) = outcome["costs"]
    timed = in_new_process(arguments)["costs"]
    return row._replace(peak=peak, cost=median(Cost(*cost) for cost in timed) if timed else None)


def in_new_process(
    arguments: dict[str, Any],
    environment: Mapping[str, str] = MappingProxyType({}),
    script: str = "training_step.py",
) -> dict[str, Any]:
    """What the script prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        raise RuntimeError(f"'{arguments['search']}' failed with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown, the first form of each size and number of searches being what the others are compared with."""
    yield "| control points | searches | form | peak MiB | of ours | with holes | CPU s | of ours | wall s | of ours |"
    yield "|" + "---|" * 10
    ours = {(row.size, row.searches): row for row in reversed(rows)}
    for row in rows:
        yield _line(row, ours[row.size, row.searches])


def _line(row: Row, ours: Row) -> str:
    cells = ["×".join(map(str, row.size)), str(row.searches), row.name]
    if row.peak is None:
        cells += [f"> {row.limit / MIB:.0f}", *["–"] * 6]
    else:
        cells += _with_ratio(row.peak / MIB, ours.peak / MIB)
        cells += ["–"] * 5 if row.cost is None else _cost_cells(row.cost, ours.cost)
    return f"| {' | '.join(cells)} |"


def _cost_cells(cost: Cost, ours: Cost) -> list[str]:
    return [f"{cost.peak / MIB:.0f}", *_with_ratio(cost.cpu, ours.cpu), *_with_ratio(cost.wall, ours.wall)]


def _with_ratio(value: float, of_ours: float) -> list[str]:
    return [f"{value:.3g}", f"{value / of_ours:.3g}"]


def agreement(half_width: int, size: Sequence[int]) -> Iterator[str]:
    """Largest difference of two forms' gradients of the weights, divided by the largest gradient."""
    yield f"| gradients compared with {REFERENCE} | float32 | float64 |"
    yield "|---|---|---|"
    names = [REFERENCE, *(name for name in SEARCHES if name not in (REFERENCE, NO_SEARCH))]
    gradients = [
        [TrainingStep(SEARCHES[name], size, half_width, COUPLINGS, dtype).gradient() for name in names]
        for dtype in (torch.float32, torch.float64)
    ]
    for name, *pair in zip(names, *gradients, strict=True):
        differences = [(one - of[0]).abs().max() / of[0].abs().max() for one, of in zip(pair, gradients, strict=True)]
        if name != REFERENCE:
            yield f"| {name} | " + " | ".join(f"{difference:.1e}" for difference in differences) + " |"


def _listed(value: Any) -> list[Any]:
    """What fire makes of ``a``, ``a,b`` and ``1,2``: a number, a string or a tuple."""
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]


if __name__ == "__main__":
    fire.Fire(main)
