# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import pytest
import torch

from monai_reg_ext.apps.commands import correspondences
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data import read_points


@pytest.fixture
def finder(monkeypatch, space):
    """What the transform was made with and given; it finds the truth at three points."""
    calls = {}

    class Finder:
        def __init__(self, *args, **options):
            calls.update(options, number=args[0], tolerance_mm=args[1])

        def __call__(self, pair):
            calls["pair"] = pair
            fixed = torch.tensor([[10.0, -5, 8], [6, -4, 10], [8.5, -2.25, 7]], dtype=torch.float64)
            moving = fixed @ space.matrix[:3, :3].T + space.matrix[:3, 3]
            calls["points"] = fixed, moving
            return pair | {"fixed_points": fixed, "moving_points": moving}

    module = importlib.import_module("monai_reg_ext.apps.commands.correspondences")
    monkeypatch.setattr(module, "FindCorrespondencesd", Finder)
    return calls


@pytest.mark.parametrize("points_space", ["ras", "lps", "voxel"])
def test_the_same_places_stand_in_the_same_rows_of_two_files(finder, space, points_space, capsys):
    scans = [str(space.folder / f"{side}.nii.gz") for side in ("fixed", "moving")]

    correspondences(*scans, output=str(space.folder / "new" / "points"), points_space=points_space)

    for side, expected, image in zip(("fixed", "moving"), finder["points"], (space.fixed, space.moving), strict=True):
        points = read_points(space.folder / "new" / "points" / f"{side}_points.csv", points_space, image.affine)
        torch.testing.assert_close(points, expected, atol=1e-4, rtol=0)
    assert "3 corresponding points" in capsys.readouterr().out


def test_options_reach_the_search_and_masks_are_loaded(finder, space):
    scan = str(space.folder / "fixed.nii.gz")

    correspondences(
        scan, scan, output=str(space.folder), fixed_mask=scan, number=70, tolerance=1.5, initial="mass", device="cpu"
    )

    options = {"number": 70, "tolerance_mm": 1.5, "initial": "mass", "device": "cpu", "method": "convex_adam"}
    assert {key: finder[key] for key in options} == options
    assert list(finder["settings"]) == ["correspondences"]
    assert finder["pair"]["fixed_mask"].dtype == torch.uint8
    assert "moving_mask" not in finder["pair"]


def test_an_unknown_space_is_refused_before_anything_is_read():
    with pytest.raises(UsageError, match="ras, lps, got 'world'"):
        correspondences("nowhere.nii", "nowhere.nii", output="x", points_space="world")
