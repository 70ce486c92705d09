# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter

SIZE = (30, 26, 28)
LUNG_SIZE, PATIENTS, LANDMARKED = (21, 16, 18), 12, 3


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


def _breathing_patient(generator: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of an exhaled and of the inhaled lung, on a grid of voxels: it stretches, most of all downwards."""
    exhale = generator.uniform((40, 30, 50), (150, 130, 160), (number, 3))
    stretch = 1 + generator.uniform((0.02, 0.02, 0.08), (0.06, 0.05, 0.2))
    return exhale, (exhale - (95, 80, 160)) * stretch + (95, 80, 160)


def _lung_scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth texture in an ellipsoid of lung in soft tissue, in Hounsfield units, and its mask."""
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=LUNG_SIZE), 1.2)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.4, 1.4, extent) for extent in LUNG_SIZE], indexing="ij"))
    mask = np.square(grid).sum(0) < 1
    scan = np.where(mask, -800.0, 30.0) + 100 * texture / texture.std()
    return scan.astype(np.float32), mask.astype(np.uint8)


@pytest.fixture(scope="session")
def breathing_dataset(tmp_path_factory) -> Path:
    """Correspondences of 15 patients in the form of ``LungCT``, scans ``a`` to ``c`` and masks, an axis flipped."""
    folder, generator = tmp_path_factory.mktemp("Breathing"), np.random.default_rng(0)
    (folder / "LungCT").mkdir()
    cases = {f"case_{n:03d}": np.hstack(_breathing_patient(generator, 200)) for n in range(PATIENTS)}
    np.savez(folder / "LungCT" / "l2r_lung_keypoints.npz", **cases)
    exhale, inhale = zip(*[_breathing_patient(generator, 100) for _ in range(LANDMARKED)], strict=True)
    landmarks = {"exhale_voxel": np.stack(exhale), "inhale_voxel": np.stack(inhale)}
    np.savez(folder / "LungCT" / "dirlab_copd_landmarks.npz", **landmarks)
    affine = np.diag([-4.0, 5.0, 3.5, 1.0])
    for seed, name in enumerate("abc"):
        for suffix, array in zip(("", "_mask"), _lung_scan(seed), strict=True):
            nib.save(nib.Nifti1Image(array, affine), folder / f"{name}{suffix}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def breathing_options(breathing_dataset) -> dict[str, object]:
    """A short training on it, by ids of a bundle's ``train.json``."""

    def scan(name: str) -> dict[str, str]:
        return {"image": f"{name}.nii.gz", "mask": f"{name}_mask.nii.gz"}

    return {
        "dataset_dir": str(breathing_dataset),
        "train_scans": [scan("a"), scan("b")],
        "val_scans": [scan("c")],
        "spacing": 4.0,
        "keypoints": 30,
        "epochs": 2,
        "pairs_per_epoch": 2,
        "val_interval": 1,
    }


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
    """As ``workflow``, and run; pictures, which take longer than a small registration, only with ``pictures=True``."""

    def run_through(*configs: str, kind: str = "infer", pictures: bool = False, **overrides) -> ConfigWorkflow:
        drawing = {"handlers#1#_disabled_": not pictures} if kind == "infer" else {"pictures": pictures}
        running = workflow(*configs, kind=kind, **drawing, **overrides)
        running.initialize()
        running.run()
        running.finalize()
        return running

    return run_through


@pytest.fixture(scope="module")
def on_two_processes(bundle) -> Callable[..., subprocess.CompletedProcess]:
    """``on_two_processes("train.json", ..., key=value)``: the module's ``bundle`` under torchrun; how it ended."""

    def start(*configs: str, **options) -> subprocess.CompletedProcess:
        files = {
            "bundle_root": bundle,
            "config_file": [str(bundle / "configs" / name) for name in configs],
            "meta_file": bundle / "configs" / "metadata.json",
        }
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launcher, "-m", "monai.bundle", "run"]
        command += [part for key, value in {**files, **options}.items() for part in (f"--{key}", str(value))]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    return start


@pytest.fixture(scope="module")
def train_on_two_processes(on_two_processes) -> Callable[..., None]:
    """``train_on_two_processes(key=value)``: the module's ``bundle`` by ``multi_gpu_train.json``."""

    def train(**options) -> None:
        done = on_two_processes("train.json", "multi_gpu_train.json", **options)
        assert done.returncode == 0, done.stderr[-3000:]

    return train


@pytest.fixture(scope="session")
def read_table() -> Callable[[Path], list[dict[str, str]]]:
    """Rows of a CSV file."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def mlflow_metric() -> Callable[..., list[float]]:
    """``mlflow_metric(training, name, run=training)``: the values of a metric in the order of the steps."""
    query = "SELECT value FROM runs JOIN metrics USING (run_uuid) WHERE name = ? AND key = ? ORDER BY step"

    def values(training: Path, name: str, run: Path | None = None) -> list[float]:
        with sqlite3.connect(training / "mlruns.db") as database:
            return [value for (value,) in database.execute(query, (str(run or training), name))]

    return values
