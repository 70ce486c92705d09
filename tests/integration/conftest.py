# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

SIZE = (30, 26, 28)


def _subject(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan and its label map: two balls of their own brightness (1, 2) in a body, somewhere else in every subject."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1) - generator.uniform(-1.5, 1.5, 3)
    label = np.zeros(SIZE, dtype=np.uint8)
    label[np.linalg.norm(grid - [10, 13, 13], axis=-1) < 5] = 1
    label[np.linalg.norm(grid - [20, 12, 15], axis=-1) < 4] = 2
    body = np.linalg.norm((grid - [15, 13, 14]) / [14, 12, 13], axis=-1) < 1
    scan = body * (40.0 + np.array([0, 60, 30])[label] + generator.normal(0, 2, SIZE))
    return scan.astype(np.float32), label


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Six training cases and one validation pair in the form of Learn2Reg, voxels of unequal sizes."""
    folder = tmp_path_factory.mktemp("Balls")
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir()
    affine = np.diag([1.5, -2.0, 1.0, 1.0])
    for case in range(8):
        for kind, array in zip(("imagesTr", "labelsTr"), _subject(case), strict=True):
            nib.save(nib.Nifti1Image(array, affine), folder / kind / f"Balls_{case:04d}_0000.nii.gz")
    cases = [
        {kind[:5]: f"./{kind}/Balls_{case:04d}_0000.nii.gz" for kind in ("imagesTr", "labelsTr")} for case in range(8)
    ]
    pair = {"fixed": cases[6]["image"], "moving": cases[7]["image"]}
    content = {"name": "Balls", "labels": {"0": {"1": "left", "2": "right"}}, "training": cases}
    (folder / "Balls_dataset.json").write_text(json.dumps({**content, "registration_val": [pair]}))
    return folder


@pytest.fixture(scope="module")
def workflow(bundle) -> Callable[..., ConfigWorkflow]:
    """``workflow("inference.json", ..., kind="infer", key=value)`` of the module's ``bundle``, not yet initialised."""

    def make(*configs: str, kind: str = "infer", **overrides) -> ConfigWorkflow:
        return ConfigWorkflow(
            config_file=[str(bundle / "configs" / name) for name in configs],
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type=kind,
            bundle_root=str(bundle),
            **overrides,
        )

    return make


@pytest.fixture(scope="module")
def run(workflow) -> Callable[..., ConfigWorkflow]:
    """As ``workflow``, and run."""

    def run_through(*configs: str, **overrides) -> ConfigWorkflow:
        running = workflow(*configs, **overrides)
        running.initialize()
        running.run()
        running.finalize()
        return running

    return run_through


@pytest.fixture(scope="module")
def train_on_two_processes(bundle) -> Callable[..., None]:
    """``train_on_two_processes(key=value)``: the module's ``bundle`` by ``multi_gpu_train.json``."""

    def train(**options) -> None:
        files = {
            "bundle_root": bundle,
            "config_file": [str(bundle / "configs" / name) for name in ("train.json", "multi_gpu_train.json")],
            "meta_file": bundle / "configs" / "metadata.json",
        }
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launcher, "-m", "monai.bundle", "run"]
        command += [part for key, value in {**files, **options}.items() for part in (f"--{key}", str(value))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]

    return train


@pytest.fixture(scope="session")
def read_table() -> Callable[[Path], list[dict[str, str]]]:
    """Rows of a CSV file."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    return read
