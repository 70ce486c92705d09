# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from importlib import import_module

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.utils import optional_import

from monai_reg_ext.data import phantom_pair
from monai_reg_ext.networks.layers import warp
from monai_reg_ext.transforms import voxel_spacing

_, has_fire = optional_import("fire")
_, has_matplotlib = optional_import("matplotlib")
SIZE = (40, 32, 36)


@pytest.fixture
def script(monkeypatch, bundles_dir):
    if not (has_fire and has_matplotlib):
        pytest.skip("fire or matplotlib is not installed")
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    return import_module("calibration")


@pytest.fixture
def scan():
    """Smooth, oblique, anisotropic, first axis flipped."""
    i, j, k = torch.meshgrid(*[torch.arange(float(extent)) for extent in SIZE], indexing="ij")
    values = 2 + torch.sin(i / 4) + torch.cos(j / 5) * torch.sin(k / 6)
    affine = torch.tensor([[-1.6, 0.9, 0, 7], [1.2, 1.2, 0, -9], [0, 0, 2.5, 3], [0, 0, 0, 1]], dtype=torch.float64)
    return MetaTensor(values[None], affine=affine)


@pytest.fixture
def errors():
    """Predicted standard deviations, and lengths of errors that have them."""
    generator = np.random.default_rng(0)
    predicted = generator.uniform(0.5, 3, 40000)
    return predicted, np.linalg.norm(generator.normal(size=(40000, 3)) * predicted[:, None] / np.sqrt(3), axis=1)


def test_errors_of_the_predicted_spread_are_calibrated(script, errors):
    result = script.calibrate(*errors, bins=8)

    assert result.counts.tolist() == [5000] * 8
    np.testing.assert_allclose(result.error, result.predicted, rtol=0.03)
    # a uniform distribution from 0.5 to 3 in eight parts, whose width hardly matters for the root mean square
    np.testing.assert_allclose(result.predicted, 0.5 + 2.5 * (np.arange(8) + 0.5) / 8, rtol=0.02)
    assert result.expected_error < 0.03
    assert result.overall[0] == pytest.approx(result.overall[1], rel=0.02)


def test_a_prediction_that_is_half_the_error_misses_by_half_of_it(script, errors):
    predicted, error = errors

    result = script.calibrate(predicted / 2, error, bins=8)

    assert result.expected_error == pytest.approx(predicted.mean() / 2, rel=0.03)
    assert result.overall[1] == pytest.approx(2 * result.overall[0], rel=0.02)
    assert result.spearman == pytest.approx(script.calibrate(predicted, error, bins=8).spearman)


def test_classes_are_of_equal_prediction_and_the_correlation_is_that_of_ranks(script):
    result = script.calibrate(np.array([4.0, 1, 3, 2]), np.array([16.0, 1, 9, 4]), bins=2)

    assert result.counts.tolist() == [2, 2]
    np.testing.assert_allclose(result.predicted, np.sqrt([(1 + 4) / 2, (9 + 16) / 2]))
    np.testing.assert_allclose(result.error, np.sqrt([(1 + 16) / 2, (81 + 256) / 2]))
    assert result.spearman == pytest.approx(1)


def test_the_fixed_image_shows_what_the_moving_one_shows_at_the_known_displacement(script, scan):
    pair = script.known_pair(scan, 6.0, 0.0, torch.Generator().manual_seed(3))

    # contrasts are powers of one normalised image, which keep the order of intensities
    fixed, moving = pair["fixed"], pair["moving"]
    orders = [
        image.as_tensor().flatten().argsort().argsort().double()
        for image in (fixed, moving, warp(moving[None], pair["true_ddf"][None])[0])
    ]
    _, as_it_was, moved = torch.corrcoef(torch.stack(orders))[0].tolist()
    assert moved > 0.999
    assert as_it_was < 0.99
    length = (pair["true_ddf"] * voxel_spacing(scan.affine).float().view(3, 1, 1, 1)).norm(dim=0)
    assert length.max().item() == pytest.approx(6.0, rel=0.01)
    for key in ("fixed", "moving"):
        torch.testing.assert_close(pair[key].affine, scan.affine)


def test_noise_is_that_of_the_range_of_intensities(script, scan):
    clean, noisy = (script.known_pair(scan, 2.0, noise, torch.Generator().manual_seed(1)) for noise in (0.0, 0.1))

    assert torch.equal(clean["body"], noisy["body"])
    assert (noisy["fixed"] - clean["fixed"]).std().item() == pytest.approx(0.1, rel=0.05)


def test_errors_are_lengths_in_mm_inside_the_body(script, scan):
    pair = script.known_pair(scan, 2.0, 0.0, torch.Generator().manual_seed(1))
    off = torch.tensor([1.0, -2.0, 0.5])
    result = {
        "pred": MetaTensor(pair["true_ddf"] + off.view(3, 1, 1, 1), affine=scan.affine),
        "uncertainty": MetaTensor(torch.where(pair["body"], 4.0, -1.0)[None], affine=scan.affine),
    }

    predicted, error = script._predicted_and_true(result, pair, torch.Generator())

    assert len(error) == min(20000, int(pair["body"].sum()))
    assert (predicted == 4).all()
    np.testing.assert_allclose(error, (scan.affine[:3, :3] @ off.double()).norm().item(), rtol=1e-4)


def test_a_case_is_deformed_alike_whatever_cases_come_before_and_unlike_the_others(script, tmp_path):
    names = [tmp_path / f"Task_{number:04d}_0000.nii.gz" for number in (1, 2)]

    draws = [torch.randn(3, generator=script._generator(0, name)).tolist() for name in (*names, names[0])]

    assert draws[0] == draws[2] != draws[1]
    assert torch.randn(3, generator=script._generator(1, names[0])).tolist() != draws[0]


def test_training_cases_give_a_table_and_the_same_plot_again(script, tmp_path, capsys):
    for number in (1, 2):
        scan = phantom_pair(size=SIZE, spacing=(6, 6, 7), max_displacement_mm=0, seed=number)["fixed"]
        (tmp_path / "Task" / "imagesTr").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "Task" / "imagesTr" / f"Task_{number:04d}_0000.nii.gz"
        nib.save(nib.Nifti1Image(scan[0].numpy(), scan.affine.numpy()), path)
    training = [{"image": f"./imagesTr/Task_{number:04d}_0000.nii.gz"} for number in (1, 2)]
    (tmp_path / "Task" / "Task_dataset.json").write_text(json.dumps({"training": training}))

    def run(name, **overrides):
        script.main(
            str(tmp_path), "Task", cases=2, max_displacement_mm=12.0, bins=3, output=str(tmp_path / name), **overrides
        )
        return capsys.readouterr().out

    quick = {"network_def#estimator#half_width": 2}
    lines = run("a.svg", **quick).splitlines()

    assert "| voxels | defaults: predicted, mm | defaults: error, mm | search_only: predicted, mm |" in "\n".join(lines)
    assert sum(line.startswith("| 1") for line in lines) == 3
    assert [line.split(":")[0] for line in lines if line.startswith("- ")] == ["- defaults", "- search_only"]
    run("b.svg", **quick)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
