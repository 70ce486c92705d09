# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_reg_ext.apps import breathing_model, breathing_scans

SIZE = (18, 14, 16)
AFFINE = np.diag([-2.0, 3.0, 2.5, 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scan whose value is its third coordinate in mm, lungs in a box, and 12 patients."""
    folder, generator = tmp_path_factory.mktemp("breathing"), np.random.default_rng(0)
    heights = np.broadcast_to(2.5 * np.arange(SIZE[2]), SIZE)
    lungs = np.zeros(SIZE, np.uint8)
    lungs[4:13, 3:10, 5:14] = 7
    nib.save(nib.Nifti1Image(heights.astype(np.float32), AFFINE), folder / "ct.nii.gz")
    nib.save(nib.Nifti1Image(lungs, AFFINE), folder / "lungs.nii.gz")
    places = generator.uniform(20, 180, (12, 80, 3))
    np.savez(
        folder / "l2r_lung_keypoints.npz", **{f"case_{n:03d}": np.hstack([at, 1.1 * at]) for n, at in enumerate(places)}
    )
    np.savez(folder / "dirlab_copd_landmarks.npz", exhale_voxel=places[:3], inhale_voxel=0.9 * places[:3])
    return folder


def test_no_patient_is_in_two_parts(folder):
    names = [
        [motion.name for motion in breathing_model(folder, part).motions[::2]] for part in ("seen", "held_out", "test")
    ]

    seen, held_out, test = names
    # 15 patients: every third is for the test, of the other ten every fifth is held out
    assert [len(part) for part in names] == [8, 2, 5]
    assert len({*seen, *held_out, *test}) == 15
    assert held_out == ["l2r_case_006", "copd_02"]


def test_a_coarser_scan_shows_the_same_and_its_lungs_are_at_the_same_place(folder):
    scan = {"image": "ct.nii.gz", "mask": "lungs.nii.gz", "lung_labels": [7], "lung_box": [[4, 12], [3, 9], [5, 20]]}

    ((fine,), (coarse,)) = (breathing_scans(folder, [scan], spacing) for spacing in (None, (4.0, 4.5, 3.75)))

    assert coarse.size == (9, 10, 11)
    for carrier in (fine, coarse):
        heights = carrier.image[0, 2, 2].double()
        expected = carrier.affine[2, 2] * torch.arange(len(heights)) + carrier.affine[2, 3]
        torch.testing.assert_close(heights[1:-1], expected[1:-1], atol=1e-3, rtol=0)
        assert carrier.affine[:3, :3].diagonal().sign().tolist() == [-1, 1, 1]
    boxes = [
        (one.affine[:3, :3] @ one.centre + one.affine[:3, 3], one.affine[:3, :3] @ one.half) for one in (fine, coarse)
    ]
    for fine_value, coarse_value in zip(*boxes, strict=True):
        torch.testing.assert_close(coarse_value, fine_value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: breathing_scans("", []), "error: give the folder"),
        (lambda folder: breathing_scans(folder, [{"image": "no.nii", "mask": "lungs.nii.gz"}]), "no.nii"),
        (
            lambda folder: breathing_scans(
                folder, [{"image": "ct.nii.gz", "mask": "lungs.nii.gz", "lung_labels": [9]}]
            ),
            "no lung",
        ),
        (lambda folder: breathing_scans(folder, [{"image": "ct.nii.gz", "mask": "lungs.nii.gz", "lungs": 1}]), "lungs"),
        (lambda folder: breathing_model(folder / "elsewhere"), "error: no l2r_lung_keypoints.npz"),
        (lambda folder: breathing_model(folder, "validation"), "part must be one of"),
        (lambda folder: breathing_model(folder, "held_out", every=9), "at least two patients"),
    ],
)
def test_what_cannot_be_read_ends_with_one_line(folder, call, message):
    with pytest.raises(SystemExit, match=message) as caught:
        call(folder)
    assert "\n" not in str(caught.value)
