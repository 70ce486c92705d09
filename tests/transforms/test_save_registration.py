# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import (
    DDFToFixedGridd,
    LoadPaird,
    ResampleToFixedd,
    SaveRegistrationd,
    WarpByDDFd,
    moving_voxels,
)


@pytest.fixture
def item(fixed_affine, fixed_size, moving_affine, moving_size, smooth_image, smooth_ddf, tmp_path, to_sitk):
    """A pair of two formats and geometries, far apart in space, registered with a smooth displacement."""
    far = moving_affine.clone()
    far[:3, 3] += torch.tensor([150.0, -90.0, 70.0], dtype=torch.float64)
    fixed, moving = smooth_image(fixed_size, fixed_affine), smooth_image(moving_size, far)
    nib.save(nib.Nifti1Image(fixed[0].numpy(), fixed_affine.numpy()), tmp_path / "fixed.nii.gz")
    sitk.WriteImage(to_sitk(moving[0].numpy(), far), tmp_path / "moving.mha")
    label = to_sitk((moving[0].numpy() > 110).astype(np.uint16) * 300, far)
    sitk.WriteImage(label, tmp_path / "label.nrrd")

    item = LoadPaird()(
        {
            "pair": "fixed__moving",
            "fixed": tmp_path / "fixed.nii.gz",
            "moving": tmp_path / "moving.mha",
            "moving_label": tmp_path / "label.nrrd",
        }
    )
    item = ResampleToFixedd(spacing=2.2, initial="centres")(item)
    item["pred"] = smooth_ddf(tuple(item["fixed_working"].shape[1:]), amplitude=1.5)
    return WarpByDDFd()(DDFToFixedGridd()(item))


@pytest.fixture
def saved(item, tmp_path) -> Path:
    SaveRegistrationd(tmp_path / "out")(item)
    return tmp_path / "out" / "fixed__moving"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_pair_with_labels_writes_four_files_and_nothing_else(saved):
    assert names(saved) == {"warped.nii.gz", "warped_label.nii.gz", "ddf.nii.gz", "field.nii.gz"}
    assert names(saved.parent) == {"fixed__moving"}


def test_simpleitk_turns_the_original_moving_image_into_the_warped_one(saved, tmp_path, item):
    field = sitk.ReadImage(saved / "field.nii.gz")
    fixed = sitk.ReadImage(tmp_path / "fixed.nii.gz")
    assert field.GetNumberOfComponentsPerPixel() == 3
    assert field.GetSize() == fixed.GetSize()
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(field, geometry)(), getattr(fixed, geometry)(), atol=1e-5)

    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    theirs = sitk.Resample(sitk.ReadImage(tmp_path / "moving.mha"), fixed, transform, sitk.sitkLinear)

    theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    ours = nib.load(saved / "warped.nii.gz").get_fdata()
    coordinates = moving_voxels(item["pred"], item["fixed"].affine, item["moving"].affine)
    last = torch.tensor(item["moving"].shape[1:]).reshape(3, 1, 1, 1) - 1
    inside = ((coordinates > 0) & (coordinates < last)).all(0).numpy()
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    assert inside.mean() > 0.5
    assert ours[inside].std() > 10
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=5e-3)


def test_simpleitk_warps_the_original_labels_to_the_same_ones(saved, tmp_path):
    field = sitk.Cast(sitk.ReadImage(saved / "field.nii.gz"), sitk.sitkVectorFloat64)
    theirs = sitk.Resample(
        sitk.ReadImage(tmp_path / "label.nrrd"),
        sitk.ReadImage(tmp_path / "fixed.nii.gz"),
        sitk.DisplacementFieldTransform(field),
        sitk.sitkNearestNeighbor,
    )

    theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)[1:-1, 1:-1, 1:-1]
    ours = np.asarray(nib.load(saved / "warped_label.nii.gz").dataobj)[1:-1, 1:-1, 1:-1]
    assert 0.2 < (ours == 300).mean() < 0.9
    assert (ours == theirs).mean() > 0.98  # ties and the outer half voxel


def test_the_ddf_is_learn2regs_array_with_the_fixed_affine(saved, item, fixed_affine):
    image = nib.load(saved / "ddf.nii.gz")

    assert image.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(image.dataobj), item["pred"].numpy().transpose(1, 2, 3, 0))
    np.testing.assert_allclose(image.affine, fixed_affine, atol=1e-5)


def test_the_field_is_a_five_dimensional_nifti_of_vectors(saved, fixed_size):
    header = nib.load(saved / "field.nii.gz").header

    assert header.get_data_shape() == (*fixed_size, 1, 3)
    assert int(header["intent_code"]) == 1007


def test_qform_and_sform_say_the_same(saved, fixed_affine):
    for path in saved.iterdir():
        image = nib.load(path)
        np.testing.assert_allclose(image.get_qform(), fixed_affine, atol=1e-4)
        np.testing.assert_allclose(image.get_sform(), fixed_affine, atol=1e-5)


def test_the_warped_image_is_float_and_labels_take_the_smallest_type(saved, item, tmp_path):
    assert nib.load(saved / "warped.nii.gz").get_data_dtype() == np.float32
    assert nib.load(saved / "warped.nii.gz").shape == tuple(item["fixed"].shape[1:])
    assert nib.load(saved / "warped_label.nii.gz").get_data_dtype() == np.uint16  # up to 300

    for highest, kind in ((255, np.uint8), (70000, np.uint32)):
        label = MetaTensor((item["warped_label"] > 0).as_tensor().to(torch.int32) * highest, affine=item["pred"].affine)
        SaveRegistrationd(tmp_path / "out")({**item, "warped_label": label})
        image = nib.load(saved / "warped_label.nii.gz")
        assert image.get_data_dtype() == kind
        assert np.asarray(image.dataobj).max() == highest


def test_uncertainty_is_written_where_known_and_labels_where_present(item, tmp_path):
    uncertainty = MetaTensor(torch.rand(1, 4, 5, 6), affine=item["moving"].affine)
    unlabelled = {key: value for key, value in item.items() if key != "warped_label"}

    out = SaveRegistrationd(tmp_path / "out")({**unlabelled, "pair": "other", "uncertainty": uncertainty})

    assert names(tmp_path / "out" / "other") == {"warped.nii.gz", "ddf.nii.gz", "field.nii.gz", "uncertainty.nii.gz"}
    image = nib.load(tmp_path / "out" / "other" / "uncertainty.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), uncertainty[0])
    np.testing.assert_allclose(image.affine, item["moving"].affine, atol=1e-4)
    assert out["uncertainty"] is uncertainty


def test_the_inverse_field_has_the_form_of_the_field_on_its_own_grid(item, tmp_path, smooth_ddf, fixed_affine):
    moving = item["moving"]
    inverse = MetaTensor(smooth_ddf(tuple(moving.shape[1:]), 0.7), affine=moving.affine)

    SaveRegistrationd(tmp_path / "out")({**item, "pred_inverse": inverse})

    folder = tmp_path / "out" / "fixed__moving"
    assert "inverse_field.nii.gz" in names(folder)
    image = sitk.ReadImage(folder / "inverse_field.nii.gz")
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    np.testing.assert_allclose(np.diag([-1, -1, 1]) @ direction, moving.affine[:3, :3], atol=1e-5)
    assert image.GetSize() == tuple(moving.shape[1:])
    expected = np.diag([-1, -1, 1]) @ moving.affine[:3, :3].numpy() @ inverse[:, 3, 5, 7].numpy()
    np.testing.assert_allclose(image.GetPixel(3, 5, 7), expected, atol=1e-5)


def test_files_of_an_earlier_result_that_the_new_one_lacks_are_removed_and_those_of_others_stay(item, tmp_path):
    folder = tmp_path / "out" / "fixed__moving"
    SaveRegistrationd(tmp_path / "out")({**item, "pred_inverse": item["pred"], "uncertainty": item["warped"]})
    (folder / "report.png").write_bytes(b"by someone else")
    del item["warped_label"]

    SaveRegistrationd(tmp_path / "out")(item)

    assert names(folder) == {"warped.nii.gz", "ddf.nii.gz", "field.nii.gz", "report.png"}


def failing_save(error: Exception, whole: int):
    """nibabel.save that writes some files, then half of one, then fails."""
    save, written = nib.save, []

    def fail(image, path):
        if len(written) < whole:
            written.append(path)
            return save(image, path)
        Path(path).write_bytes(b"half")
        raise error

    return fail


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bad")])
def test_a_failure_between_files_leaves_nothing_behind(error, item, tmp_path, monkeypatch):
    monkeypatch.setattr(nib, "save", failing_save(error, whole=2))

    with pytest.raises(type(error)):
        SaveRegistrationd(tmp_path / "out")(item)

    assert names(tmp_path / "out") == set()


def test_a_failure_leaves_an_earlier_result_as_it_was(saved, item, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(nib, "save", failing_save(OSError(28, "No space left on device"), whole=1))

    with pytest.raises(OSError, match=r"fixed__moving \(No space left on device\)") as caught:
        SaveRegistrationd(saved.parent)({**item, "pred": item["pred"] * 2})

    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert caught.value.__suppress_context__


def test_a_folder_that_cannot_be_made_is_named(item, tmp_path):
    (tmp_path / "out").write_text("a file in the way")

    with pytest.raises(OSError, match=r"cannot write to .*out.fixed__moving"):
        SaveRegistrationd(tmp_path / "out")(item)


@pytest.mark.parametrize("pair", ["", ".", "..", "../up", "a/b", "/root"])
def test_a_pair_that_is_no_folder_name_is_refused(pair, item, tmp_path):
    with pytest.raises(ValueError, match="pair"):
        SaveRegistrationd(tmp_path / "out")({**item, "pair": pair})


@pytest.mark.parametrize("key", ["pred", "warped", "warped_label"])
def test_what_has_no_place_in_space_is_not_saved(key, item, tmp_path):
    with pytest.raises(TypeError, match=key):
        SaveRegistrationd(tmp_path / "out")({**item, key: item[key].as_tensor()})

    assert not (tmp_path / "out").exists()
