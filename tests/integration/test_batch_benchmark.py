# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess

import nibabel as nib
import pytest


@pytest.fixture
def batch(monkeypatch, bundles_dir):
    pytest.importorskip("resource")
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    import batch

    return batch


def test_a_straight_line_through_two_runs_tells_the_start_and_a_pair_apart(batch):
    start, of_a_pair = 7.5, 2.25
    runs = [batch.Run(pairs, start + pairs * of_a_pair, 0, 0.0) for pairs in (2, 7)]

    assert batch.straight_line(*runs) == pytest.approx((start, of_a_pair))


def test_a_run_is_counted_with_its_processes_and_its_rows(batch, tmp_path, monkeypatch):
    # in the place of monai-reg: half a second of work by a child of a child, and the table that a batch writes
    work = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    real, commands = subprocess.run, []

    def in_its_place(command, **options):
        commands.append(command)
        output = tmp_path / "out3"
        output.mkdir()
        (output / "metrics.csv").write_text("pair,seconds\na,4.5\nb,2.5\nc,3.5\n")
        return real([command[0], "-c", child], **options)

    monkeypatch.setattr(subprocess, "run", in_its_place)

    run = batch.run_batch(tmp_path, 3)

    assert commands[0][-4:] == ["batch", str(tmp_path / "pairs3.csv"), "--output", str(tmp_path / "out3")]
    assert (tmp_path / "pairs3.csv").read_text().splitlines()[-1] == "pair2,fixed.nii.gz,moving.nii.gz"
    assert run.pairs == 3
    assert 0.5 <= run.cpu < 5
    assert run.peak > 1 << 20
    assert run.network == 2.5


def test_the_scans_of_every_size_show_the_same_field_of_view(batch, tmp_path):
    size = batch.write_scans(tmp_path, [28, 24, 20])

    images = [nib.load(tmp_path / f"{key}.nii.gz") for key in ("fixed", "moving")]
    assert [image.shape for image in images] == [(28, 24, 20)] * 2
    assert images[0].header.get_zooms() == pytest.approx((192 / 28, 192 / 24, 192 / 20))
    assert size == sum((tmp_path / f"{key}.nii.gz").stat().st_size for key in ("fixed", "moving"))
