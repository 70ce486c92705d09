# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.utils import optional_import

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
_, has_fire = optional_import("fire")


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch):
    # to compile the kernels would take longer than the test
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")


@pytest.fixture
def scripts(monkeypatch, bundles_dir) -> SimpleNamespace:
    if not has_fire:
        pytest.skip("fire is not installed")
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    import training
    import training_searches
    import training_step

    return SimpleNamespace(training=training, searches=training_searches.SEARCHES, step=training_step)


@pytest.mark.parametrize("couplings", [(), (0.03, 0.3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_all_forms_have_the_same_gradient(scripts, couplings, dtype, tolerance):
    forms = [name for name in scripts.searches if name != "no search"]

    gradients = [
        scripts.step.TrainingStep(scripts.searches[name], (7, 9, 8), 2, couplings, dtype).gradient() for name in forms
    ]

    assert len(gradients) == 4
    # 26-32-32-15 with biases
    assert len(gradients[0]) == 27 * 32 + 33 * 32 + 33 * 15
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() < tolerance * gradients[0].abs().max()


STEP = """
import time, torch
from training_step import measured_within

def step():
    # long enough for a sampler on a busy machine
    filled = torch.ones(96 * 2**20 // 4)
    time.sleep(0.1)
    del filled

print([(cost.peak / 2**20, cost.wall) for cost in measured_within(2**40, step, 3)["costs"]])
"""


def test_the_peak_is_that_of_each_repetition(scripts):
    # a process of its own: in that of other tests memory comes and goes
    folder = Path(scripts.step.__file__).parent
    done = subprocess.run([sys.executable, "-c", STEP], cwd=folder, capture_output=True, text=True, check=True)

    costs = ast.literal_eval(done.stdout)
    assert [peak for peak, _ in costs] == [pytest.approx(96, abs=4)] * 3
    assert all(wall > 0.09 for _, wall in costs)


def test_a_form_that_asks_for_more_than_the_limit_is_stopped(scripts):
    # 15 channels x 125 displacements x 12 x 14 x 11 points x 4 bytes are 13 MiB, and the differences are squared
    arguments = {"search": "autograd, unfolded", "size": (12, 14, 11), "half_width": 2, "couplings": ()}

    outcome = scripts.training.in_new_process({**arguments, "repeats": 1, "threads": 1, "limit": 16 * MIB})

    assert outcome == {"limit": 16 * MIB, "costs": []}


def test_another_failure_is_no_lack_of_memory(scripts):
    arguments = {"search": "ours", "size": (12, 14, 11), "half_width": -1, "couplings": ()}

    with pytest.raises(RuntimeError, match="'ours' failed with status 1"):
        scripts.training.in_new_process({**arguments, "repeats": 1, "threads": 1, "limit": 1 << 34})


def test_ratios_are_to_the_first_form_of_the_same_size_and_number_of_searches(scripts):
    def row(size, name, peak, wall):
        return scripts.training.Row(size, 1, name, 3 * MIB, peak, scripts.training.Cost(wall, 2 * wall, 9 * MIB))

    rows = [row((3, 4, 5), "ours", 2 * MIB, 0.5), row((3, 4, 5), "other", 5 * MIB, 2.0)]
    rows += [row((6, 4, 5), "ours", 4 * MIB, 1.0), scripts.training.Row((6, 4, 5), 1, "other", 3 * MIB)]

    assert list(scripts.training.table(rows))[2:] == [
        "| 3×4×5 | 1 | ours | 2 | 1 | 9 | 1 | 1 | 0.5 | 1 |",
        "| 3×4×5 | 1 | other | 5 | 2.5 | 9 | 4 | 4 | 2 | 4 |",
        "| 6×4×5 | 1 | ours | 4 | 1 | 9 | 2 | 1 | 1 | 1 |",
        "| 6×4×5 | 1 | other | > 3 | – | – | – | – | – | – |",
    ]


def test_a_small_run_prints_and_writes_both_tables(scripts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scripts.training, "AGREEMENT_SIZE", (7, 9, 8))
    forms = ("ours", "autograd, unfolded")
    monkeypatch.setattr(scripts.training, "SEARCHES", {name: scripts.searches[name] for name in forms})

    scripts.training.main("7x9x8", searches=2, half_width=2, repeats=2, threads=1, output_dir=str(tmp_path / "out"))

    text = (tmp_path / "out" / "training.md").read_text()
    assert text in capsys.readouterr().out
    measured = [line.split(" | ")[:3] for line in text.splitlines() if line.startswith("| 7×9×8")]
    assert measured == [["| 7×9×8", "2", name] for name in forms]
    (compared,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| ours |")]
    assert float(compared[1]) < 1e-4
    assert float(compared[2].removesuffix(" |")) < 1e-9
