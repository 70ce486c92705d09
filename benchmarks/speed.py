# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Speed and memory of ConvexAdam: ours beside the ``convexAdam`` package, alternating in one process.

    python benchmarks/speed.py --output_dir OUT

prints tables and writes them to ``OUT/speed.md``, a plot to ``OUT/speed.png``, every single measurement to
``OUT/speed.json``. Needs the extra ``benchmark`` and Linux. Both register the same generated pair (``phantom_pair``,
seed 0, the same field of view at every size) with the published defaults: MIND of radius 1 and dilation 2, search at
every 6th voxel with half-width 4, 15 rounds of inverse consistency, 80 Adam iterations at every 2nd voxel, weight 1.25.
What the numbers mean:

- **wall s**, **CPU s**: seconds on the clock and seconds of all threads, medians over the repeats. Ratios are
  convexAdam's number divided by ours.
- **peak MiB**: the most resident memory above that before the call, when the inputs were there, the code had been run
  once, and freed memory had been given back. A stage's peak counts what earlier stages left.
- **stages** are measured inside the whole calls. *MIND of one image*: ours with its means on both grids, convexAdam's
  without, which it computes later. *Correlation + coupled convex*: both directions. *One Adam iteration*: from one
  optimiser step to the next. *Rest*: changes of grid and the final upsampling; for convexAdam its pooling too.
- **GB at least**: what our stage has to read and write, see ``least_bytes`` in ``speed_methods.py``. **Of copy
  bandwidth**: the time in which a copy of 256 MB moves as much (its reads and writes counted), divided by our wall
  time. Far below 1, arithmetic takes the time; above 1 is possible where data stays in a cache.
- **search alone**: from features averaged over cells of 4 voxels; ``budget`` is the estimator's ``memory``. Costs that
  do not fit are computed anew in each of the 7 passes. convexAdam up to half-width 4 only: it is very slow beyond.
- **resident memory** of many registrations is read after each, nothing being cleaned up in between: it includes freed
  memory that the allocator keeps. What is *held* is the growth that remains when that is given back.
- **differences from one and the same registration**: control points count as *equal* when they differ by less than 1e-4
  cells after search and inverse consistency. The nudged field shows what Adam, whose first steps have full length
  wherever there is any gradient, makes of rounding.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fire
import torch
from speed_agreement import agreement
from speed_meter import Cost, copy_bandwidth, peak_memory_source, release_memory, resident_bytes
from speed_methods import METHODS, ConvexAdam, Ours, least_bytes, measured_call, measured_search
from speed_report import plot, tables

from monai_reg_ext.data import phantom_pair
from monai_reg_ext.networks.blocks import MindSSC
from monai_reg_ext.networks.kernels.runtime import compiled_twin

PARTS = ("first", "whole", "widths", "endurance", "agreement", "gpu")
WARM_UP_SIZE = (48, 48, 48)
ENDURANCE_SIZE = (64, 64, 64)
FIELD_OF_VIEW_MM = 192.0
WIDTHS_SPACING = 4
REFERENCE_HALF_WIDTH = 4  # the largest at which convexAdam's search is measured
QUICK = {
    "sizes": (48,),
    "half_widths": (3, 4),
    "width_size": 48,
    "agreement_size": 48,
    "repeats": 1,
    "registrations": 5,
}


def main(
    parts: Sequence[str] | str = PARTS,
    sizes: Sequence[Any] | str = (64, 128, "192x160x256", 256),
    half_widths: Sequence[int] | int | str = (3, 4, 5, 6, 7, 8),
    width_size: int | str = 128,
    budgets_mib: Sequence[int] | int | str = (64, 1024),
    agreement_size: int | str = "192x160x256",
    methods: Sequence[str] | str = tuple(METHODS),
    repeats: int = 5,
    registrations: int = 100,
    threads: int = 2,
    output_dir: str = "",
    quick: bool = False,
) -> None:
    """Measure, print, write.

    Args:
        parts: of ``first`` (compilation), ``whole``, ``widths``, ``endurance``, ``agreement``, ``gpu``.
        sizes: of the images in ``whole`` and ``gpu``, voxels along one axis of a cube or ``IxJxK``.
        half_widths: of the search windows in ``widths``, in cells.
        width_size: of the images in ``widths``.
        budgets_mib: memory for the costs in ``widths``, one curve each.
        agreement_size: of the images in ``agreement``.
        methods: ``ours``, ``convexAdam``.
        repeats: of every measurement.
        registrations: in ``endurance``, at least 4.
        threads: of torch and of the compiled kernels.
        output_dir: folder for table, plot and measurements; nothing is written without.
        quick: small sizes and one repeat, to see that it runs; replaces the arguments above.
    """
    if quick:
        return main(parts, methods=methods, threads=threads, output_dir=output_dir, **QUICK)
    parts = _listed(parts)
    if not set(parts) <= set(PARTS):
        raise ValueError(f"parts must be of {PARTS}, got {tuple(parts)}.")
    torch.set_num_threads(threads)
    sizes, half_widths = [_size(size) for size in _listed(sizes)], [int(width) for width in _listed(half_widths)]
    budgets = [int(budget) << 20 for budget in _listed(budgets_mib)]
    implementations = {name: METHODS[name]() for name in _listed(methods)}
    for method in implementations.values():
        method.register(*images(WARM_UP_SIZE))
    runs = {
        "first": lambda: first_calls(threads),
        "whole": lambda: whole_calls(implementations, sizes, repeats),
        "widths": lambda: searches(implementations, _size(width_size), half_widths, budgets, repeats),
        "endurance": lambda: endurance(registrations),
        "agreement": lambda: agreements(_size(agreement_size)),
        "gpu": lambda: gpu_calls(implementations, sizes, repeats),
    }
    bandwidth = copy_bandwidth()
    results = {
        "machine": _machine(bandwidth, repeats),
        "bandwidth": bandwidth,
        "least_bytes": {_name(size): least_bytes(size) for size in sizes},
    }
    for part in parts:
        results[part] = runs[part]()
        _write(results, output_dir)
    if output_dir:
        plot(results, Path(output_dir) / "speed.png")
    print(tables(results))


@lru_cache(maxsize=2)
def images(size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed and moving image ``(I, J, K)`` of the generated pair."""
    pair = phantom_pair(size, [FIELD_OF_VIEW_MM / extent for extent in size])
    return pair["fixed"].as_tensor()[0].clone(), pair["moving"].as_tensor()[0].clone()


def first_calls(threads: int) -> dict[str, Any]:
    """Seconds of our first registration in a process without and with the stored kernels, and of a later one."""
    with tempfile.TemporaryDirectory() as kernels:
        (compiling, _), (loading, warm) = (_first_two_calls(threads, kernels) for _ in range(2))
    return {"size": _name(WARM_UP_SIZE), "compiling": compiling, "loading": loading, "warm": warm}


def _first_two_calls(threads: int, kernels: str) -> list[float]:
    """Seconds of two registrations in a new process that stores its kernels in a folder."""
    code = f"import speed; speed.print_two_calls({threads})"
    environment = {**os.environ, "NUMBA_CACHE_DIR": kernels}
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_two_calls(threads: int) -> None:
    """What the new process of ``first`` does."""
    torch.set_num_threads(threads)
    method, pair, seconds = Ours(), images(WARM_UP_SIZE), []
    for _ in range(2):
        start = time.perf_counter()
        method.register(*pair)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


def whole_calls(
    implementations: dict[str, Ours | ConvexAdam], sizes: list[tuple[int, int, int]], repeats: int
) -> list[dict[str, Any]]:
    """Costs of every stage of every call."""
    rows = []
    for size in sizes:
        pair = images(size)
        for _, (name, method) in _alternating(repeats, implementations.items()):
            costs = measured_call(method, *pair)
            rows += [
                {"size": _name(size), "voxels": pair[0].numel(), "method": name, "stage": stage, "cost": cost}
                for stage, cost in costs.items()
            ]
            _say("whole", _name(size), name, costs["whole call"])
    return rows


def searches(
    implementations: dict[str, Ours | ConvexAdam],
    size: tuple[int, int, int],
    half_widths: list[int],
    budgets: list[int],
    repeats: int,
) -> list[dict[str, Any]]:
    """Costs of the search alone, on the same features, with windows of several widths."""
    spacing = (WIDTHS_SPACING,) * 3
    features = [MindSSC().pooled(image[None, None], [spacing], compat=True)[0] for image in images(size)]
    curves = [
        (name, None) if name == "convexAdam" else (name, budget) for name in implementations for budget in budgets
    ]
    rows = []
    for width in half_widths:
        known = [curve for curve in dict.fromkeys(curves) if curve[0] == "ours" or width <= REFERENCE_HALF_WIDTH]
        for _, (name, budget) in _alternating(repeats, known):
            cost = measured_search(implementations[name], *features, width, WIDTHS_SPACING, budget)
            curve = name if budget is None else f"{name}, budget {budget >> 20} MiB"
            count = (2 * width + 1) ** 3
            rows.append({"size": _name(size), "spacing": WIDTHS_SPACING, "half_width": width, "displacements": count})
            rows[-1] |= {"curve": curve, "cost": cost}
            _say("widths", width, curve, cost)
    return rows


def _searched(names: Iterable[str], half_width: int, budgets: list[int]) -> Iterator[tuple[str, int | None]]:
    """Methods and budgets to be measured at a half-width."""
    for name in names:
        if name == "ours":
            yield from ((name, budget) for budget in budgets)
        elif half_width <= REFERENCE_HALF_WIDTH:
            yield name, None


def endurance(registrations: int) -> dict[str, Any]:
    """Resident memory after each of many registrations, and how much is still held after them all."""
    method, pair, resident = Ours(), images(ENDURANCE_SIZE), []
    method.register(*pair)
    release_memory()
    before = resident_bytes()
    for _ in range(registrations):
        method.register(*pair)
        resident.append(resident_bytes())
    release_memory()
    return {"size": _name(ENDURANCE_SIZE), "resident": resident, "held": resident_bytes() - before}


def agreements(size: tuple[int, int, int]) -> dict[str, Any]:
    """Differences between registrations that should be the same."""
    return {"size": _name(size), "rows": agreement(*images(size))}


def gpu_calls(
    implementations: dict[str, Ours | ConvexAdam], sizes: list[tuple[int, int, int]], repeats: int
) -> dict[str, Any]:
    """Whole calls on the GPU after one to warm up, with the memory that torch allocated."""
    if not torch.cuda.is_available():
        return {"device": None}
    rows = []
    for size in sizes:
        pair = [image.cuda() for image in images(size)]
        for repeat, (name, method) in _alternating(repeats + 1, implementations.items()):
            cost = _gpu_cost(method, pair)
            if repeat > 0:
                rows.append({"size": _name(size), "method": name, "cost": cost})
                _say("gpu", _name(size), name, cost)
    return {"device": torch.cuda.get_device_name(), "rows": rows}


def _gpu_cost(method: Ours | ConvexAdam, pair: Sequence[torch.Tensor]) -> Cost:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    inputs, wall, cpu = torch.cuda.memory_allocated(), time.perf_counter(), time.process_time()
    method.register(*pair)
    torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall, cpu, torch.cuda.max_memory_allocated() - inputs)


def _alternating(repeats: int, cases: Iterable[tuple]) -> Iterator[tuple[int, tuple]]:
    """Every case once, then every case again, so that a slow spell of the machine meets all of them."""
    cases = list(cases)
    return ((repeat, case) for repeat in range(repeats) for case in cases)


def _machine(bandwidth: float, repeats: int) -> dict[str, str]:
    kernels = "in use" if compiled_twin("banded_filter", torch.zeros(1)) else "not in use"
    packages = {name: _version(name) for name in ("torch", "numba", "convexAdam")}
    return {
        "processor": f"{os.cpu_count()} cores of {_processor()}",
        "threads": str(torch.get_num_threads()),
        **packages,
        "compiled kernels": kernels,
        "copy bandwidth": f"{bandwidth / 1e9:.1f} GB/s read and written",
        "peak memory": peak_memory_source(),
        "pairs": f"generated phantom, {FIELD_OF_VIEW_MM:g} mm wide",
        "medians of": str(repeats),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {models[0] if models else 'of unknown model'}"


def _write(results: dict[str, Any], output_dir: str) -> None:
    """After every part, so that an interrupted run is not lost."""
    if output_dir:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "speed.md").write_text(tables(results))
        (folder / "speed.json").write_text(json.dumps(_plain(results), indent=1))


def _plain(value: Any) -> Any:
    """Named numbers instead of the bare lists that JSON makes of a cost."""
    if isinstance(value, Cost):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _say(*words: Any) -> None:
    *names, cost = words
    print(*names, f"{cost.wall:.3g} s, {cost.cpu:.3g} s CPU, {cost.peak / 2**20:.0f} MiB", flush=True)


def _listed(value: Any) -> list[Any]:
    """What fire makes of ``a``, ``a,b`` and ``1,2``: a number, a string or a tuple."""
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]


def _size(value: int | str) -> tuple[int, int, int]:
    """``64`` or ``192x160x256``."""
    extents = [int(extent) for extent in str(value).split("x")]
    i, j, k = extents * 3 if len(extents) == 1 else extents
    return i, j, k


def _name(size: Sequence[int]) -> str:
    return "×".join(str(extent) for extent in size)


if __name__ == "__main__":
    fire.Fire(main)
