# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_reg_ext.data import phantom_pair
from monai_reg_ext.transforms import SpatialDisplacement, grid_voxels, write_transform

SIZE = (40, 36, 28)
AWAY_MM = torch.tensor([300.0, -200.0, 100.0])
SMALL = {"network_def#estimator#half_width": 3, "network_def#refiner#iterations": 20}


@pytest.fixture
def scan() -> nib.Nifti1Image:
    fixed = phantom_pair(size=SIZE, spacing=(4, 4, 6))["fixed"]
    return nib.Nifti1Image(fixed[0].numpy(), fixed.affine.numpy())


@pytest.fixture
def same_scan_far_away(scan) -> nib.Nifti1Image:
    affine = scan.affine.copy()
    affine[:3, 3] += AWAY_MM.numpy()
    return nib.Nifti1Image(np.asarray(scan.dataobj), affine)


def register(bundles_dir: Path, folder: Path, **overrides) -> np.ndarray:
    """Displacement in mm ``(I, J, K, 3)`` of fixed.nii.gz and moving.nii.gz in the folder."""
    bundle = bundles_dir / "convex_adam"
    running = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"), meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False, workflow_type="infer", bundle_root=str(bundle), output_dir=str(folder / "out"),
        fixed=str(folder / "fixed.nii.gz"), moving=str(folder / "moving.nii.gz"), **SMALL, **overrides,
    )  # fmt: skip
    running.initialize()
    running.run()
    running.finalize()
    with (folder / "out" / "metrics.csv").open() as file:
        assert [row["error"] for row in csv.DictReader(file)] == [""]
    ddf = nib.load(folder / "out" / "fixed__moving" / "ddf.nii.gz")
    return np.asarray(ddf.dataobj) @ ddf.affine[:3, :3].T


def test_a_field_file_as_start_is_part_of_the_field_that_is_saved(bundles_dir, scan, same_scan_far_away, tmp_path):
    nib.save(scan, tmp_path / "fixed.nii.gz")
    nib.save(same_scan_far_away, tmp_path / "moving.nii.gz")
    affine = torch.from_numpy(scan.affine)
    # beside the way to the moving scan a wave of 8 mm, which the registration has to take back
    wave = 2 * torch.sin(grid_voxels(SIZE, torch.eye(4, dtype=torch.float64)) / 6).double()
    start = SpatialDisplacement(wave + torch.linalg.solve(affine[:3, :3], AWAY_MM.double()).view(3, 1, 1, 1), affine)
    write_transform(start, tmp_path / "start.h5")

    moved = register(bundles_dir, tmp_path, initial=str(tmp_path / "start.h5"))

    inner = (slice(6, -6), slice(6, -6), slice(5, -5))
    before = np.linalg.norm(
        (start.ddf.movedim(0, -1).numpy() @ scan.affine[:3, :3].T - AWAY_MM.numpy())[inner], axis=-1
    )
    after = np.linalg.norm((moved - AWAY_MM.numpy())[inner], axis=-1)
    assert before.mean() > 5
    assert after.mean() < 0.35 * before.mean()


def test_padding_that_stays_does_not_hold_the_rest_back(bundles_dir, scan, tmp_path, caplog):
    values = np.asarray(scan.dataobj).copy()
    shifted = np.roll(values, 2, axis=0)  # the body moves by 8 mm, the scanner's edge does not
    for name, image in (("fixed", values), ("moving", shifted)):
        image[:, 22:] = -2048
        nib.save(nib.Nifti1Image(image, scan.affine), tmp_path / f"{name}.nii.gz")

    with caplog.at_level("INFO"):
        moved = register(bundles_dir, tmp_path)

    assert "fixed__moving, moving: 38.9 % is padding of -2048" in caplog.text
    body = (values > -500) & (values < 500)
    beside = body[8:-8, 16:22, 6:-6]
    expected = 2 * scan.affine[:3, 0]
    error = np.linalg.norm(moved[8:-8, 16:22, 6:-6][beside] - expected, axis=-1)
    untold = register(bundles_dir, tmp_path, padding="none")[8:-8, 16:22, 6:-6][beside]
    assert error.mean() < 3
    assert error.mean() < np.linalg.norm(untold - expected, axis=-1).mean()
