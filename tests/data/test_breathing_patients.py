# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.data import breathing_patients


def test_no_patient_is_in_both_splits_and_both_sources_are_in_each(data_dir):
    folder = data_dir / "LungCT"
    if not (folder / "l2r_lung_keypoints.npz").is_file():
        pytest.skip("no lung correspondences")

    train, test = ([patient.name for patient in breathing_patients(folder, split)] for split in ("train", "test"))

    assert len(train) == 20
    assert len(test) == 10
    assert sorted(train + test) == sorted(patient.name for patient in breathing_patients(folder, "all"))
    assert not set(train) & set(test)
    assert {name.split("_")[0] for name in train} == {name.split("_")[0] for name in test} == {"l2r", "copd"}


def test_rows_are_exhaled_and_inhaled_places(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.savez(tmp_path / "l2r_lung_keypoints.npz", case_002=rows + 100, case_001=rows)
    exhale, inhale = np.random.default_rng(0).normal(size=(2, 3, 5, 3))
    np.savez(tmp_path / "dirlab_copd_landmarks.npz", exhale_voxel=exhale, inhale_voxel=inhale)

    patients = breathing_patients(tmp_path, "all")

    assert [patient.name for patient in patients] == ["l2r_case_001", "l2r_case_002", "copd_01", "copd_02", "copd_03"]
    assert patients[0].exhale[1].tolist() == [6, 7, 8]
    assert patients[0].inhale[1].tolist() == [9, 10, 11]
    torch.testing.assert_close(patients[3].inhale, torch.from_numpy(inhale[1]))
    assert [patient.name for patient in breathing_patients(tmp_path, "test")] == ["copd_01"]


def test_missing_files_and_unknown_splits_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no l2r_lung_keypoints\.npz in"):
        breathing_patients(tmp_path)
    with pytest.raises(ValueError, match=r"'test'.*got 'val'"):
        breathing_patients(tmp_path, "val")
