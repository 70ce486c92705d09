# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from monai.utils import optional_import

SIZE = (30, 36, 42)
NAME = "30×36×42"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
_, has_fire = optional_import("fire")
_, has_reference = optional_import("convexAdam")


@pytest.fixture(autouse=True)
def _one_thread_and_plain_torch(monkeypatch):
    # to compile the kernels would take longer than the test
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scripts(monkeypatch, bundles_dir) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    import speed_agreement
    import speed_meter
    import speed_methods
    import speed_report

    return SimpleNamespace(agreement=speed_agreement, meter=speed_meter, methods=speed_methods, report=speed_report)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(SIZE), torch.rand(SIZE)


# in a process of its own: what else a process of the test suite holds comes and goes
MEASURED = """
import json, sys, time
from pathlib import Path

import torch

import speed_meter

if len(sys.argv) > 1:
    speed_meter._CLEAR_REFS = Path(sys.argv[1])
MIB = 1 << 20


def fill_and_drop(mebibytes):
    # above 32 MiB the C library always gives memory back at once
    filled = torch.ones(mebibytes * MIB // 4)
    # long enough for a sampler on a busy machine
    time.sleep(0.1)
    del filled


fill_and_drop(200)
meter = speed_meter.Meter()
with meter.stage("call"):
    with meter.stage("large"):
        fill_and_drop(96)
    with meter.stage("small"):
        fill_and_drop(40)
    kept = torch.ones(48 * MIB // 4)
    with meter.stage("beside what is kept"):
        fill_and_drop(40)
print(json.dumps({name: cost.peak / MIB for name, (cost,) in meter.costs.items()}))
"""


@pytest.mark.parametrize("mark", ["as this machine has it", "reset without effect"])
def test_the_peak_of_a_stage_is_what_it_held_at_most_above_the_start_of_the_call(bundles_dir, tmp_path, mark):
    # a file that takes what is written and does nothing
    clear_refs = [str(tmp_path / "clear_refs")] if mark == "reset without effect" else []
    environment = os.environ | {"PYTHONPATH": str(bundles_dir.parent / "benchmarks"), "OMP_NUM_THREADS": "1"}

    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *clear_refs], env=environment, capture_output=True, text=True, timeout=120
    )

    assert run.returncode == 0, run.stderr
    peaks = json.loads(run.stdout)
    expected = {"call": 96, "large": 96, "small": 40, "beside what is kept": 88}
    assert peaks == {name: pytest.approx(peak, abs=4) for name, peak in expected.items()}


def test_what_the_meter_does_itself_takes_no_time(scripts):
    meter = scripts.meter.Meter()
    start = time.perf_counter()

    with meter.stage("call"):
        for _ in range(2000):
            meter.lap("nothing")
        with meter.stage("sleep"):
            time.sleep(0.2)
        meter.forget("nothing")

    (call,), (sleep,) = meter.costs["call"], meter.costs["sleep"]
    assert len(meter.costs["nothing"]) == 1999
    assert sleep.wall > 0.19
    # nearly all of the rest went into looking at the memory
    assert call.wall - sleep.wall < 0.5 * (time.perf_counter() - start - sleep.wall)
    assert call.cpu < 0.5 * (time.perf_counter() - start)


def test_processor_time_counts_the_work_of_other_threads(scripts):
    spent = []

    def work() -> None:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)
        spent.append(time.thread_time())

    meter = scripts.meter.Meter()
    with meter.stage("call"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    (call,) = meter.costs["call"]
    assert spent[0] > 0.01
    assert call.cpu >= spent[0]


@pytest.mark.parametrize(
    "method",
    [
        "ours",
        pytest.param("convexAdam", marks=pytest.mark.skipif(not has_reference, reason="convexAdam is not installed")),
    ],
)
def test_the_stages_add_up_to_the_call_and_nothing_stays_watched(scripts, pair, method):
    implementation = scripts.methods.METHODS[method]()
    before = [getattr(owner, name) for owner, name, _ in implementation.watched]

    costs = scripts.methods.measured_call(implementation, *pair)

    assert tuple(costs) == scripts.methods.STAGES
    whole, mind, search, agreed, lap, adam, rest = costs.values()
    assert 2 * mind.wall + search.wall + agreed.wall + adam.wall + rest.wall == pytest.approx(whole.wall)
    # 80 iterations, of which some may be much slower than most
    assert 40 * lap.wall < adam.wall
    assert all(cost.wall > 0 for cost in costs.values())
    assert all(cost.peak <= whole.peak for cost in costs.values() if cost.peak is not None)
    assert [getattr(owner, name) for owner, name, _ in implementation.watched] == before


def test_least_bytes_of_a_size_are_those_counted_by_hand(scripts):
    least = scripts.methods.least_bytes((13, 12, 6))

    # 936 voxels; 3 x 2 x 1 = 6 points of the search, 7 x 6 x 3 = 126 cells of the refinement
    mind = 4 * (2 * 936 + 12 * (6 + 126))
    search = 4 * (24 * 6 + 7 * 2 * 729 * 6)
    agreed = 4 * 15 * 12 * 6
    iteration = 4 * 63 * 126
    rest = 4 * 3 * 936
    assert list(least.values()) == [
        2 * mind + search + agreed + 80 * iteration + rest,
        mind,
        search,
        agreed,
        iteration,
        80 * iteration,
        rest,
    ]


def test_registrations_without_compiled_kernels_are_the_same_bit_by_bit_and_a_nudge_shows(scripts, pair):
    again, plain, nudged = scripts.agreement.agreement(*pair)

    # the kernels are switched off for the whole test
    for row in (again, plain):
        assert row["bit_equal"]
        assert (row["equal"], row["coarse_max"], row["99.9 %"]) == (1, 0, 0)
    assert not nudged["bit_equal"]
    assert 1e-7 < nudged["coarse_max"] < 1e-5
    assert nudged["median"] <= nudged["99 %"] <= nudged["99.9 %"]


def test_the_fitted_exponent_is_that_of_a_power_law_and_needs_three_points(scripts):
    counts = [1000, 4000, 27000, 64000]

    assert scripts.report.exponent(counts, [3e-6 * count**1.5 for count in counts]) == pytest.approx(1.5)
    assert scripts.report.exponent(counts[:2], [1.0, 2.0]) is None


@pytest.mark.skipif(not has_fire, reason="fire is not installed")
@pytest.mark.skipif(not has_reference, reason="convexAdam is not installed")
def test_a_small_run_writes_every_table_the_plot_and_the_measurements(scripts, tmp_path, capsys, monkeypatch):
    import speed

    monkeypatch.setattr(speed, "WARM_UP_SIZE", SIZE)
    monkeypatch.setattr(speed, "ENDURANCE_SIZE", SIZE)
    monkeypatch.setattr(scripts.methods, "ITERATIONS", 8)
    speed.main(
        parts="whole,widths,endurance,gpu",
        sizes="30x36x42",
        half_widths=(3, 5),
        width_size="24x28x32",
        budgets_mib=64,
        repeats=2,
        registrations=4,
        threads=1,
        output_dir=str(tmp_path / "out"),
    )

    table = (tmp_path / "out" / "speed.md").read_text()
    assert table in capsys.readouterr().out
    stages = [line.split(" | ")[1] for line in table.splitlines() if line.startswith(f"| {NAME}")]
    assert stages == [*scripts.methods.STAGES]
    widths = [line.split(" | ")[1:3] for line in table.splitlines() if line.startswith(("| 3 |", "| 5 |"))]
    # convexAdam is too slow for wide windows
    assert widths == [["343", "ours, budget 64 MiB"], ["343", "convexAdam"], ["1331", "ours, budget 64 MiB"]]
    assert f"4 registrations of {NAME}" in table
    assert (tmp_path / "out" / "speed.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "out" / "speed.json").read_text())["whole"]
    assert [row["method"] for row in rows[:: len(scripts.methods.STAGES)]] == ["ours", "convexAdam"] * 2
    assert rows[0]["voxels"] == math.prod(SIZE)


@pytest.mark.skipif(not has_fire, reason="fire is not installed")
@pytest.mark.parametrize("value", ["64,12x10x14", ("64", "12x10x14"), (64, "12x10x14")])
def test_sizes_are_cubes_or_three_extents_however_the_command_line_hands_them_over(scripts, value):
    import speed

    assert [speed._size(size) for size in speed._listed(value)] == [(64, 64, 64), (12, 10, 14)]


@pytest.mark.skipif(not has_fire, reason="fire is not installed")
def test_an_unknown_part_is_refused(scripts):
    import speed

    with pytest.raises(ValueError, match="parts must be of"):
        speed.main(parts="whole,all")
