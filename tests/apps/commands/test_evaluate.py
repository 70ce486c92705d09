# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.apps.commands import evaluate
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.data import write_points
from monai_reg_ext.transforms import SpatialDisplacement, write_transform

AFFINE = torch.diag(torch.tensor([-2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
SIZE = (12, 10, 9)


def block(first: int) -> MetaTensor:
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, first : first + 3, 3:7, 2:6] = 4
    return MetaTensor(label, affine=AFFINE)


def shift(voxels: float) -> SpatialDisplacement:
    ddf = torch.zeros(3, *SIZE)
    ddf[0] = voxels
    return SpatialDisplacement(ddf, AFFINE)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The moving scan shows everything one voxel (2 mm) further along axis 0; ``right`` and ``still`` are fields."""
    monkeypatch.chdir(tmp_path)
    write_volume(block(4), "fixed_label.nii.gz")
    write_volume(block(5), "moving_label.nii.gz")
    fixed_points = torch.tensor([[-8.0, 4, 9], [-11.0, 5.5, 12]], dtype=torch.float64)
    write_points("fixed_points.csv", fixed_points)
    write_points("moving_points.csv", fixed_points + torch.tensor([-2.0, 0, 0]))
    write_transform(shift(1), "right.nii.gz")
    write_transform(shift(0), "still.nii.gz")
    return tmp_path


LABELS = {"fixed_label": "fixed_label.nii.gz", "moving_label": "moving_label.nii.gz"}
POINTS = {"fixed_points": "fixed_points.csv", "moving_points": "moving_points.csv"}


def test_a_right_field_has_full_dice_and_no_error(files, capsys):
    evaluate("right.nii.gz", **LABELS, **POINTS, output="figures.json")

    summary = json.loads((files / "figures.json").read_text())
    # blocks of three planes, two in common before
    expected = {"dice": 100, "dice_before": 200 / 3, "hd95": 0, "tre_mm": 0, "tre_mm_before": 2, "sdlogj": 0}
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert (summary["pairs"], summary["failed"], summary["folding_percent"]) == (1, 0, 0)
    assert "dice                          100 %   (before: 66.67)" in capsys.readouterr().out


def test_without_labels_and_points_smoothness_is_what_can_be_said(capsys):
    evaluate("still.nii.gz")

    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["sdlogj", "folding_percent"]


def test_points_alone_need_no_image_of_either_side(capsys):
    evaluate("still.nii.gz", **POINTS)

    assert "tre_mm                          2 mm   (before: 2)" in capsys.readouterr().out


def test_points_in_voxels_count_those_of_the_scans_given(files, capsys):
    write_points("fixed_voxel.csv", torch.tensor([[-8.0, 4, 9]]), "voxel", AFFINE)
    moving_affine = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    moving_affine[:3, 3] = torch.tensor([-30.0, -1, -1])
    write_volume(MetaTensor(torch.rand(1, 40, 20, 30), affine=moving_affine), "moving.nii.gz")
    write_points("moving_voxel.csv", torch.tensor([[-10.0, 4, 9]]), "voxel", moving_affine)

    evaluate(
        "right.nii.gz", fixed_points="fixed_voxel.csv", moving_points="moving_voxel.csv", points_space="voxel",
        moving="moving.nii.gz", output="figures.json",
    )  # fmt: skip

    assert json.loads((files / "figures.json").read_text())["tre_mm"] == pytest.approx(0, abs=1e-4)


def test_a_label_map_of_another_grid_is_refused(files):
    write_volume(MetaTensor(torch.ones(1, 5, 5, 5, dtype=torch.int32), affine=AFFINE), "other.nii.gz")
    write_volume(MetaTensor(torch.rand(1, *SIZE), affine=AFFINE), "fixed.nii.gz")

    with pytest.raises(ValueError, match="fixed_label: has"):
        evaluate("right.nii.gz", fixed="fixed.nii.gz", fixed_label="other.nii.gz", moving_label="moving_label.nii.gz")


@pytest.fixture
def task(files):
    """A Learn2Reg task of three pairs and a submission with a field under each of its names for two of them."""
    folder = files / "Task"
    rng = np.random.default_rng(0)
    for case, first in (("0001", 4), ("0002", 5), ("0003", 4)):
        write_volume(block(first), folder / "labelsTr" / f"Task_{case}_0000.nii.gz")
        image = MetaTensor(torch.tensor(rng.normal(size=(1, *SIZE)), dtype=torch.float32), affine=AFFINE)
        write_volume(image, folder / "imagesTr" / f"Task_{case}_0000.nii.gz")
    names = [f"./imagesTr/Task_{case}_0000.nii.gz" for case in ("0001", "0002", "0003")]
    pairs = [{"fixed": names[a], "moving": names[b]} for a, b in ((0, 1), (2, 1), (0, 2))]
    (folder / "Task_dataset.json").write_text(json.dumps({"registration_val": pairs}))
    write_transform(shift(1), files / "fields" / "disp_0001_0002.nii.gz", "learn2reg")
    write_transform(shift(0), files / "fields" / "disp_0003_0000_0002_0000.npz")
    return folder


def test_a_submission_is_measured_pair_by_pair_and_missing_fields_are_failures(files, task, capsys):
    with pytest.raises(ValueError, match=r"1 of 3 pairs failed.*disp_0001_0003"):
        evaluate("fields", dataset_dir=task, output="measured")

    with (files / "measured" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["dice"][:5] for row in rows] == ["100.0", "66.66", ""]
    summary = json.loads((files / "measured" / "summary.json").read_text())
    assert (summary["pairs"], summary["failed"]) == (3, 1)
    assert summary["dice"] == pytest.approx(250 / 3)
    output = capsys.readouterr().out
    assert output.startswith("3 pairs, 1 failed; means:\n")
    assert f"{summary['dice']:.4g} %" in output


def test_the_output_of_a_run_is_measured_too(files, task, capsys):
    for pair in ("0001__Task_0002", "0003__Task_0002", "0001__Task_0003"):
        name = "_0000__".join(pair.split("__"))
        write_transform(shift(1), files / "run" / f"Task_{name}_0000" / "ddf.nii.gz", "learn2reg")

    evaluate("run", dataset_dir=task)

    # of the third pair both labels are at the same place, so that one plane is lost
    assert f"{(100 + 100 + 200 / 3) / 3:.4g} %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "arguments", "message"),
    [
        (".", {}, "is a folder: give --dataset_dir"),
        ("fields", {"dataset_dir": "Task", "fixed": "a.nii"}, "--fixed does not go with it"),
    ],
)
def test_what_does_not_go_together_is_refused(field, arguments, message):
    with pytest.raises(UsageError, match=message):
        evaluate(field, **arguments)


def test_a_folder_that_does_not_exist_is_said(task):
    with pytest.raises(FileNotFoundError, match="no folder of fields at nowhere"):
        evaluate("nowhere", dataset_dir=task)
