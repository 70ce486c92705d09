# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.apps.commands import phantom
from monai_reg_ext.data import phantom_pair, read_points
from monai_reg_ext.transforms.read_volume import read_volume


def test_the_files_hold_the_phantom(tmp_path):
    phantom(tmp_path / "scans", seed=3)

    pair = phantom_pair(seed=3)
    names = {f"{side}{kind}.nii.gz" for side in ("fixed", "moving") for kind in ("", "_label", "_mask")}
    written = {path.name for path in (tmp_path / "scans").iterdir()}
    assert written == names | {"fixed_points.csv", "moving_points.csv"}
    for name, key in {"fixed": "fixed", "moving_label": "moving_label", "moving_mask": "moving_body"}.items():
        volume = read_volume(tmp_path / "scans" / f"{name}.nii.gz", name)
        assert torch.equal(volume.as_tensor().double(), pair[key].as_tensor().double())
        torch.testing.assert_close(volume.affine, pair[key].affine, atol=1e-4, rtol=0)
    points = read_points(tmp_path / "scans" / "moving_points.csv")
    torch.testing.assert_close(points, pair["moving_points"], atol=1e-5, rtol=0)


def test_files_that_exist_are_not_replaced(tmp_path):
    (tmp_path / "moving.nii.gz").write_text("mine")

    with pytest.raises(ValueError, match=r"holds moving\.nii\.gz already"):
        phantom(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["moving.nii.gz"]
