# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_reg_ext.transforms import (
    SpatialDisplacement,
    find_learn2reg_field,
    learn2reg_field_names,
    read_transform,
    write_transform,
)


def test_a_pair_has_a_long_and_a_short_name():
    names = learn2reg_field_names("imagesTr/LungCT_0007_0000.nii.gz", "imagesTr/LungCT_0007_0001.nii.gz")
    assert names == ("disp_0007_0000_0007_0001", "disp_0007_0007")
    between = learn2reg_field_names("AbdomenCTCT_0001_0000.nii.gz", "AbdomenCTCT_0004_0000.nii.gz")
    assert between == ("disp_0001_0000_0004_0000", "disp_0001_0004")
    with pytest.raises(ValueError, match=r"<Task>_<case>_<modality>.*scan\.nii\.gz"):
        learn2reg_field_names("scan.nii.gz", "AbdomenCTCT_0004_0000.nii.gz")


@pytest.mark.parametrize("name", ["disp_0001_0000_0004_0000", "disp_0001_0004"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".npz"])
def test_a_field_is_found_and_read_under_either_name_and_suffix(name, suffix, field, fixed, tmp_path):
    write_transform(field, tmp_path / f"{name}{suffix}", form="learn2reg")

    path = find_learn2reg_field(tmp_path, "AbdomenCTCT_0001_0000.nii.gz", "AbdomenCTCT_0004_0000.nii.gz")

    assert path == tmp_path / f"{name}{suffix}"
    back = read_transform(path, fixed)
    tolerance = 2**-11 if suffix == ".npz" else 0  # float16: half of the last of eleven digits, below 2 voxels
    torch.testing.assert_close(back.ddf, field.ddf, rtol=0, atol=tolerance)
    assert torch.equal(back.affine, fixed.affine)


def test_a_field_that_is_not_there_is_missed_by_all_its_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"disp_0001_0000_0004_0000\.nii\.gz.*disp_0001_0004\.npz"):
        find_learn2reg_field(tmp_path, "AbdomenCTCT_0001_0000.nii.gz", "AbdomenCTCT_0004_0000.nii.gz")


def test_the_npz_is_what_the_challenge_asks_for(field, tmp_path):
    write_transform(field, tmp_path / "disp_0001_0004.npz")

    content = np.load(tmp_path / "disp_0001_0004.npz")

    assert content.files == ["arr_0"]
    assert content["arr_0"].dtype == np.float16
    assert content["arr_0"].shape == (*field.size, 3)
    np.testing.assert_allclose(content["arr_0"][3, 4, 5], field.ddf[:, 3, 4, 5], atol=1e-3)


def test_the_nifti_carries_the_affine_and_is_monais_ddf(field, tmp_path):
    write_transform(field, tmp_path / "ddf.nii.gz", form="learn2reg")

    alone = read_transform(tmp_path / "ddf.nii.gz")

    assert torch.equal(alone.ddf, field.ddf)
    torch.testing.assert_close(alone.affine, field.affine, rtol=0, atol=1e-5)  # headers are float32


@pytest.mark.parametrize("half", [False, True])
def test_the_older_forms_are_read_too(half, tmp_path, smooth_image, fixed_affine):
    size = (16, 14, 12)
    fixed = smooth_image(size, fixed_affine)
    shape = tuple(extent // 2 for extent in size) if half else size
    constant = np.broadcast_to(np.array([1.5, -2.0, 0.25]).reshape(3, 1, 1, 1), (3, *shape)).astype(np.float16)
    np.savez_compressed(tmp_path / "old.npz", constant)

    field = read_transform(tmp_path / "old.npz", fixed)

    expected = torch.tensor([1.5, -2.0, 0.25]).reshape(3, 1, 1, 1).expand(3, *size)
    torch.testing.assert_close(field.ddf, expected)


def test_a_file_without_a_place_needs_the_fixed_image(field, fixed, tmp_path):
    write_transform(field, tmp_path / "field.npz")
    untagged = nib.Nifti1Image(field.ddf.movedim(0, -1).numpy(), np.eye(4))  # as the challenge's own zero fields
    nib.save(untagged, tmp_path / "field.nii.gz")

    for name in ("field.npz", "field.nii.gz"):
        with pytest.raises(ValueError, match=rf"{name}: .*does not tell where.*give the fixed image"):
            read_transform(tmp_path / name)
    assert torch.equal(read_transform(tmp_path / "field.nii.gz", fixed).affine, fixed.affine)


def test_a_field_of_another_image_is_refused(field, fixed, moving_affine, smooth_image, moving_size, tmp_path):
    write_transform(SpatialDisplacement(field.ddf, moving_affine), tmp_path / "field.nii.gz", form="learn2reg")

    with pytest.raises(ValueError, match=r"field\.nii\.gz: .*lies elsewhere in space than its image fixed"):
        read_transform(tmp_path / "field.nii.gz", fixed)
    with pytest.raises(ValueError, match=r"field\.nii\.gz: .*another fixed image"):
        read_transform(tmp_path / "field.nii.gz", smooth_image(moving_size, moving_affine))


def test_files_of_other_content_are_refused(field, fixed, tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), np.eye(4)), tmp_path / "two.nii.gz")
    fsl = nib.Nifti1Image(field.ddf.movedim(0, -1).numpy(), field.affine.numpy())
    fsl.header["intent_code"] = 2006
    nib.save(fsl, tmp_path / "fsl.nii.gz")
    (tmp_path / "junk.npz").write_bytes(b"no zip")

    for name, message in (("two.npz", "only array"), ("two.nii.gz", "three components"), ("fsl.nii.gz", "FSL")):
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            read_transform(tmp_path / name, fixed)
    with pytest.raises(ValueError, match=r"junk\.npz"):
        read_transform(tmp_path / "junk.npz", fixed)


def test_fields_in_voxels_stand_alone(field, fixed, tmp_path):
    write_transform(field, tmp_path / "field.npz")

    for path, invert in (([tmp_path / "field.npz"] * 2, False), (tmp_path / "field.npz", True)):
        with pytest.raises(ValueError, match=r"field\.npz: .*joined with others or inverted"):
            read_transform(path, fixed, invert=invert)
