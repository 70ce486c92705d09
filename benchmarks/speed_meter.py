# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Time and memory of a call and of the stages inside it. Linux only, since memory is read from ``/proc``."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = [
    "Cost",
    "Meter",
    "copy_bandwidth",
    "median",
    "peak_memory_source",
    "release_memory",
    "resident_bytes",
    "total",
]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATM = Path("/proc/self/statm")
_SAMPLING_SECONDS = 0.001
_COPY_BYTES = 256_000_000
_PROBE_BYTES = 2**26


class Cost(NamedTuple):
    """What some work took.

    Attributes:
        wall: seconds on the clock.
        cpu: seconds of all threads together.
        peak: bytes of resident memory that the process had at most meanwhile, above those it had when the whole call
            began; ``None`` where that cannot be told.
    """

    wall: float
    cpu: float
    peak: int | None

    def minus(self, other: Cost, peak: int | None = None) -> Cost:
        """What is left of the time; memory cannot be subtracted."""
        return Cost(self.wall - other.wall, self.cpu - other.cpu, peak)

    def scaled(self, factor: float) -> Cost:
        """The times multiplied."""
        return Cost(self.wall * factor, self.cpu * factor, self.peak)


def total(costs: Iterable[Cost]) -> Cost:
    """Times added up, memory of the worst."""
    walls, cpus, peaks = zip(*costs, strict=True)
    return Cost(sum(walls), sum(cpus), _of_known(max, peaks))


def median(costs: Iterable[Cost]) -> Cost:
    """Median of each number for itself."""
    walls, cpus, peaks = zip(*costs, strict=True)
    return Cost(statistics.median(walls), statistics.median(cpus), _of_known(statistics.median, peaks))


def _of_known(choose: Callable[[list[int]], Any], peaks: Iterable[int | None]) -> int | None:
    known = [peak for peak in peaks if peak is not None]
    return int(choose(known)) if known else None


class Meter:
    """Measures stages that may lie inside each other.

    Its clocks stand still while it reads the memory itself, so that a call costs what it would cost unwatched. Memory
    that was freed before is given back to the system first; what is resident then is what peaks are counted from.
    """

    def __init__(self) -> None:
        self.costs: dict[str, list[Cost]] = defaultdict(list)
        self._open: dict[str, _Open] = {}
        self._own_seconds = (0.0, 0.0)
        self._memory = _peak_memory()
        release_memory()
        self._resident = resident_bytes()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def watched(self, function: Callable, name: str) -> Callable:
        """The function, with every call of it counted as a stage."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def start(self, name: str) -> None:
        self._note_peak()
        self._open[name] = _Open(*self._clocks())

    def stop(self, name: str) -> None:
        wall, cpu = self._clocks()
        self._note_peak()
        stage = self._open.pop(name)
        self.costs[name].append(Cost(wall - stage.wall, cpu - stage.cpu, max(0, stage.peak - self._resident)))

    def lap(self, name: str) -> None:
        """End of one repetition and begin of the next."""
        if name in self._open:
            self.stop(name)
        self.start(name)

    def forget(self, name: str) -> None:
        """Drop a lap that was begun and has no end."""
        self._open.pop(name, None)

    def _clocks(self) -> tuple[float, float]:
        own_wall, own_cpu = self._own_seconds
        return time.perf_counter() - own_wall, time.process_time() - own_cpu

    def _note_peak(self) -> None:
        before = self._clocks()
        peak = self._memory.take()
        for stage in self._open.values():
            stage.peak = max(stage.peak, peak)
        # the clocks exclude what was spent so far: add what they have moved on since
        self._own_seconds = tuple(  # type: ignore[assignment]
            own + now - then for own, now, then in zip(self._own_seconds, self._clocks(), before, strict=True)
        )


class _Open:
    """A stage that has begun: clocks at its start and the highest resident bytes since."""

    def __init__(self, wall: float, cpu: float) -> None:
        self.wall, self.cpu, self.peak = wall, cpu, 0


class _HighWaterMark:
    """The kernel's own highest value of resident memory, which sees everything."""

    source = "high-water mark of the kernel"

    def take(self) -> int:
        """Highest bytes since the last time."""
        peak = _status_bytes("VmHWM")
        _CLEAR_REFS.write_text("5")
        return peak


class _Sampler:
    """Resident memory looked up every millisecond; a spike in between is missed, and a little CPU time is added."""

    source = "sampled every millisecond"

    def __init__(self) -> None:
        self._highest = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def take(self) -> int:
        """Highest bytes since the last time."""
        peak, self._highest = max(self._highest, resident_bytes()), 0
        return peak

    def _watch(self) -> None:
        while True:
            self._highest = max(self._highest, resident_bytes())
            time.sleep(_SAMPLING_SECONDS)


@functools.cache
def _peak_memory() -> _HighWaterMark | _Sampler:
    return _HighWaterMark() if _mark_can_be_reset() else _Sampler()


def _mark_can_be_reset() -> bool:
    """Some containers do not permit it, others permit it and do nothing."""
    try:
        # above 32 MiB the C library always gives memory back at once
        torch.ones(_PROBE_BYTES // 4)
        highest = _status_bytes("VmHWM")
        _CLEAR_REFS.write_text("5")
        return _status_bytes("VmHWM") < highest - _PROBE_BYTES // 2
    except OSError:
        return False


def peak_memory_source() -> str:
    """How peaks are found on this machine, in words."""
    return _peak_memory().source


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _status_bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def release_memory() -> None:
    """Give freed memory back to the system, which the allocator would keep and use again unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def copy_bandwidth(repeats: int = 7) -> float:
    """Bytes per second, read and written ones together, of copying a tensor of 256 MB with torch's threads."""
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * _COPY_BYTES / statistics.median(seconds)
