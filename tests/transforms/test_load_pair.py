# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import LoadPaird

FORMATS = ["nii.gz", "nrrd", "mha"]


@pytest.fixture
def values(fixed_size) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, fixed_size).astype(np.int16)


@pytest.fixture
def scan(tmp_path, values, fixed_affine, to_sitk) -> Callable[..., Path]:
    """Path of the same oblique scan in a format that SimpleITK writes."""

    def write(extension: str = "nii.gz", array: np.ndarray = values, name: str = "scan") -> Path:
        path = tmp_path / f"{name}.{extension}"
        sitk.WriteImage(to_sitk(array, fixed_affine), path)
        return path

    return write


def load(fixed, moving, **others):
    return LoadPaird()({"pair": "a__b", "fixed": fixed, "moving": moving, **others})


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_gives_the_same_axes_values_and_ras_affine(extension, scan, values, fixed_affine):
    path = scan(extension)

    fixed = load(path, scan())["fixed"]

    assert isinstance(fixed, MetaTensor)
    assert fixed.dtype == torch.float32
    assert torch.equal(fixed.as_tensor(), torch.from_numpy(values[None]).float())
    np.testing.assert_allclose(fixed.affine, fixed_affine, atol=1e-5)  # headers hold float32 or six digits
    assert fixed.meta["filename_or_obj"] == str(path)


def test_a_nifti_has_the_affine_that_nibabel_gives(scan):
    path = scan()

    assert np.array_equal(load(path, path)["fixed"].affine.numpy(), nib.load(path).affine)


def test_an_sform_that_disagrees_with_the_voxel_size_counts_as_in_nibabel(tmp_path, scan, values, fixed_affine):
    image = nib.Nifti1Image(values, fixed_affine.numpy())
    image.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]), code=1)
    image.header.set_zooms((1.0, 1.0, 1.0))
    path = tmp_path / "disagreeing.nii"
    nib.save(image, path)

    np.testing.assert_allclose(load(path, scan())["fixed"].affine, fixed_affine, atol=1e-5)


@pytest.mark.parametrize("extension", FORMATS)
def test_labels_and_masks_get_their_types(extension, scan, values):
    labels, mask = (values % 5).astype(np.uint8), (values > 0).astype(np.int16) * 255

    label = scan(extension, labels, "label")
    item = load(scan(), scan(), fixed_label=label, moving_prediction=label, moving_mask=scan(extension, mask, "mask"))

    assert torch.equal(item["moving_prediction"], item["fixed_label"])
    assert item["fixed_label"].dtype == torch.int32
    assert np.array_equal(item["fixed_label"][0], labels)
    assert item["moving_mask"].dtype == torch.uint8
    assert np.array_equal(item["moving_mask"][0], values > 0)


def test_a_label_map_of_floats_is_one_when_its_numbers_are_whole(scan, values):
    item = load(scan(), scan(), fixed_label=scan(array=np.abs(values).astype(np.float32), name="label"))

    assert np.array_equal(item["fixed_label"][0], np.abs(values))


def test_big_endian_files_are_read(tmp_path, values):
    header = nib.Nifti1Header(endianness=">")
    path = tmp_path / "big.nii"
    nib.save(nib.Nifti1Image(values.astype(">i2"), np.eye(4), header), path)

    assert np.array_equal(load(path, path)["fixed"][0], values)


@pytest.mark.parametrize("extra_axes", [1, 2])
def test_trailing_axes_of_one_are_dropped(tmp_path, values, extra_axes):
    path = tmp_path / "extra.nii.gz"
    nib.save(nib.Nifti1Image(values.reshape(*values.shape, *[1] * extra_axes), np.eye(4)), path)

    assert load(path, path)["fixed"].shape == (1, *values.shape)


def test_metatensors_and_arrays_of_points_pass_through(fixed_affine, fixed_size, smooth_image):
    image = smooth_image(fixed_size, fixed_affine)

    item = load(image, image, fixed_points=np.ones((4, 3), np.float32))

    assert torch.equal(item["fixed"], image)
    assert torch.equal(item["fixed"].affine, fixed_affine)
    assert item["fixed_points"].dtype == torch.float64
    assert item["pair"] == "a__b"


def test_absent_and_none_entries_are_left_out(scan):
    assert set(load(scan(), scan(), fixed_label=None)) == {"pair", "fixed", "moving"}


def test_points_in_voxels_are_of_their_own_sides_image(tmp_path, scan, fixed_affine, smooth_image, moving_affine):
    path = tmp_path / "points.csv"
    path.write_text("1,2,3\n4,5,6\n")
    moving = smooth_image((9, 9, 9), moving_affine)

    item = load(scan(), moving, fixed_points=path, moving_points=str(path))

    voxel = np.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(item["fixed_points"], nib.affines.apply_affine(fixed_affine.numpy(), voxel), atol=1e-4)
    np.testing.assert_allclose(item["moving_points"], nib.affines.apply_affine(moving_affine.numpy(), voxel))


def test_points_in_lps_lose_the_signs_of_x_and_y(tmp_path, scan):
    path = tmp_path / "points.csv"
    path.write_text("1,2,3\n")

    item = LoadPaird(points_space="lps")({"fixed": scan(), "moving": scan(), "fixed_points": path})

    assert item["fixed_points"].tolist() == [[-1.0, -2.0, 3.0]]


def test_a_given_voxel_size_replaces_the_headers_on_all_files_of_its_side(tmp_path, scan, values, fixed_affine, caplog):
    path = tmp_path / "points.csv"
    path.write_text("0,0,2\n")
    caplog.set_level(logging.INFO)

    item = load(scan(), scan(), fixed_mask=scan(), fixed_points=path, fixed_spacing=[1.5, 1.8, 5.2])

    expected = fixed_affine.clone()
    expected[:, 2] *= 2  # the header says 2.6
    expected[:3, 3] = fixed_affine[:3, 3]
    for key in ("fixed", "fixed_mask"):
        torch.testing.assert_close(item[key].affine, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(item["fixed_points"][0], expected[:3, 2] * 2 + expected[:3, 3], atol=1e-4, rtol=0)
    torch.testing.assert_close(item["moving"].affine, fixed_affine, atol=1e-5, rtol=0)
    assert "fixed_spacing" not in item
    assert "[1.5, 1.8, 5.2] mm replaces" in caplog.text


def test_the_wrong_header_of_a_real_scan_is_put_right(data_dir):
    folder = data_dir / "LiverMR4D" / "dataset18"
    moving = folder / "cyc_1_10.mha"  # its header says 5 mm, its companions' 4 mm

    item = load(folder / "exhMaster.mha", moving, moving_spacing=[1.36719, 1.36719, 4.0])

    torch.testing.assert_close(item["moving"].affine, item["fixed"].affine)
    assert not torch.allclose(load(moving, moving)["moving"].affine, item["fixed"].affine)


# --- bad input: one line that names key and file, and no trail of other errors


def refusal(kind, **entries) -> str:
    with pytest.raises(kind) as caught:
        LoadPaird()({"pair": "a__b", **entries})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    message = str(caught.value)
    assert "\n" not in message
    return message


def save_nifti(path, array, affine=None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def test_a_missing_file_is_named(scan, tmp_path):
    message = refusal(FileNotFoundError, fixed=scan(), moving=scan(), moving_label=tmp_path / "no.nii.gz")

    assert "moving_label" in message
    assert "no.nii.gz" in message


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.mha", "scan.nrrd", "scan.txt"])
def test_a_file_that_is_no_image_is_named(name, scan, tmp_path):
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / name
    path.write_bytes(b"hello")

    message = refusal(ValueError, fixed=path, moving=scan())

    assert message.startswith(f"fixed ({path}): cannot be read")


@pytest.mark.parametrize("extension", FORMATS)
def test_a_file_that_ends_early_is_named(extension, scan, tmp_path):
    whole = scan(extension).read_bytes()
    path = tmp_path / f"short.{extension}"
    path.write_bytes(whole[: len(whole) * 2 // 3])

    assert "short" in refusal(ValueError, fixed=scan(), moving=path)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 7, 2), (5, 6, 7, 1, 3)])
def test_what_is_no_volume_is_refused_with_its_shape(shape, scan, tmp_path):
    path = save_nifti(tmp_path / "bad.nii.gz", np.zeros(shape, np.float32))

    message = refusal(ValueError, fixed=path, moving=scan())

    assert str(shape) in message
    assert "bad.nii.gz" in message


def test_colours_and_vectors_are_refused(scan, tmp_path):
    colours = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    vectors = sitk.GetImageFromArray(np.zeros((5, 6, 7, 3), np.float32), isVector=True)
    picture = sitk.GetImageFromArray(np.zeros((6, 7, 3), np.uint8), isVector=True)
    sitk.WriteImage(vectors, str(tmp_path / "vectors.mha"))
    sitk.WriteImage(picture, str(tmp_path / "picture.mha"))

    for path in (save_nifti(tmp_path / "rgb.nii", colours), tmp_path / "vectors.mha", tmp_path / "picture.mha"):
        assert "3 values per voxel" in refusal(ValueError, fixed=path, moving=scan())


def test_complex_numbers_are_refused(scan, tmp_path):
    path = save_nifti(tmp_path / "complex.nii", np.zeros((5, 6, 7), np.complex64))

    assert "complex" in refusal(TypeError, fixed=path, moving=scan())


@pytest.mark.parametrize(("size", "shown"), [(0.0, "0"), (-2.0, "-2.0")])
@pytest.mark.parametrize("extension", ["nii", "mha"])
def test_a_voxel_size_of_zero_or_below_is_refused(size, shown, extension, scan, tmp_path):
    path = tmp_path / f"bad.{extension}"
    content = bytearray(scan(extension).read_bytes())
    if extension == "nii":
        np.frombuffer(content, nib.nifti1.header_dtype, count=1)["pixdim"][0, 2] = size
    else:
        start = content.index(b"ElementSpacing")
        content[start : content.index(b"\n", start)] = f"ElementSpacing = 1.5 {size:g} 2.6".encode()
    path.write_bytes(content)

    message = refusal(ValueError, fixed=scan(), moving=path)

    assert "spacing" in message or "voxel size" in message
    assert shown.removesuffix(".0") in message


def test_labels_between_whole_numbers_are_refused(scan, values):
    path = scan(array=values / np.float32(2), name="label")

    message = refusal(ValueError, fixed=scan(), moving=scan(), fixed_label=path)

    assert message.startswith(f"fixed_label ({path}): a label map needs whole numbers")
    assert f"{np.count_nonzero(values % 2)} voxels" in message


def test_labels_and_masks_that_are_not_finite_are_refused(scan, fixed_size):
    path = scan(array=np.full(fixed_size, np.nan, np.float32), name="nan")

    assert "nan" in refusal(ValueError, fixed=scan(), moving=scan(), fixed_label=path)
    assert "NaN" in refusal(ValueError, fixed=scan(), moving=scan(), fixed_mask=path)


def test_a_missing_side_is_named(scan):
    assert "moving is absent" in refusal(ValueError, fixed=scan())


def test_a_bare_tensor_is_refused_because_it_has_no_place_in_space(scan):
    assert "MetaTensor" in refusal(TypeError, fixed=torch.zeros(1, 5, 6, 7), moving=scan())


def test_a_metatensor_without_channel_is_refused(scan):
    assert "(5, 6, 7)" in refusal(ValueError, fixed=MetaTensor(torch.zeros(5, 6, 7)), moving=scan())


@pytest.mark.parametrize("spacing", [[1, 1], [1, -1, 1], [1, float("nan"), 1]])
def test_a_given_voxel_size_must_be_one(spacing, scan):
    assert "three positive numbers" in refusal(ValueError, fixed=scan(), moving=scan(), fixed_spacing=spacing)


def test_points_that_cannot_be_read_are_named_by_key_and_file(scan, tmp_path):
    (tmp_path / "points.csv").write_text("1,2\n")

    for kind, name in ((ValueError, "points.csv"), (FileNotFoundError, "none.csv")):
        message = refusal(kind, fixed=scan(), moving=scan(), fixed_points=tmp_path / name)
        assert message.startswith("fixed_points: ")
        assert name in message


def test_an_unknown_space_of_points_is_refused():
    with pytest.raises(ValueError, match="voxel"):
        LoadPaird(points_space="mm")
