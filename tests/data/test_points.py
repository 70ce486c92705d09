# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own name for itself)
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_reg_ext.data import read_points, write_points

# axes permuted, one flipped, spacing 2 x 1.5 x 3, turned by 0.3 about the third axis
ROTATION = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = ROTATION @ np.array([[0, -1.5, 0], [2.0, 0, 0], [0, 0, 3.0]])
AFFINE[:3, 3] = (-30.0, 12.5, 700.0)
INDICES = [(0, 0, 0), (4, 1, 2), (2, 6, 8)]


def _itk_points(tmp_path):
    """mm LPS of INDICES as ITK computes them, for an image on the grid of AFFINE."""
    nib.save(nib.Nifti1Image(np.zeros((5, 7, 9), np.float32), AFFINE), tmp_path / "image.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "image.nii.gz"))
    return [image.TransformIndexToPhysicalPoint(index) for index in INDICES]


def _write(path, text):
    path.write_text(text)
    return path


def _lines(points, separator):
    return "".join(separator.join(f"{x:.9f}" for x in point) + "\n" for point in points)


@pytest.mark.parametrize("space", ["voxel", "lps"])
def test_csv_and_elastix_files_of_voxels_and_of_mm_lead_to_where_itk_sees_the_points(tmp_path, space):
    lps = _itk_points(tmp_path)
    numbers, word = (INDICES, "index") if space == "voxel" else (lps, "point")
    csv = _write(tmp_path / "points.csv", _lines(numbers, ","))
    elastix = _write(tmp_path / "points.txt", f"{word}\n3\n" + _lines(numbers, " "))
    expected = torch.tensor(lps, dtype=torch.float64) * torch.tensor([-1.0, -1.0, 1.0])

    from_csv = read_points(csv, space, torch.as_tensor(AFFINE))
    from_elastix = read_points(elastix, "ras", torch.as_tensor(AFFINE))  # the file knows better than the argument

    assert from_csv.dtype == torch.float64
    torch.testing.assert_close(from_csv, expected, rtol=0, atol=1e-4)  # NIfTI headers are float32
    torch.testing.assert_close(from_elastix, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n4,5,6\n",
        "x,y,z\n1,2,3\n4,5,6",
        "# x,y,z in mm\n\n 1, 2 ,3\n\n# more\n4,5,6\n",
        "\ufeff1,2,3\r\n4,5,6\r\n",
    ],
    ids=["bare", "header", "comments", "windows"],
)
def test_header_comments_and_empty_lines_are_skipped(tmp_path, text):
    path = tmp_path / "points.csv"
    path.write_bytes(text.encode())

    points = read_points(path, "ras")

    assert points.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n4,5\n", "line 2: needs 3 comma-separated numbers, got '4,5'"),
        ("# mm\n1,2,3\n4,five,6\n", "line 3: needs 3 .* got '4,five,6'"),
        ("1,2,3,4\n", "line 1"),
        ("1 2 3\n", "comma-separated"),
        ("1,2,nan\n", "line 1: coordinates must be finite"),
        ("1,2,3\ninf,2,3\n", "line 2: coordinates must be finite"),
        ("x,y,z\n", "holds no points"),
        ("", "holds no points"),
        ("point\n2\n1 2 3\n", "announces 2 points and holds 1"),
        ("index\n1 2 3\n", "number of points, got 1 2 3"),
        ("point\n", "number of points, got nothing"),
        ("point\n1\n1 2\n", "line 3: needs 3 numbers separated by spaces"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, text, message):
    path = _write(tmp_path / "bad.csv", text)

    with pytest.raises(ValueError, match=rf"bad\.csv.*{message}"):
        read_points(path, affine=torch.eye(4))


def test_missing_files_binary_files_missing_affines_and_unknown_spaces_are_refused(tmp_path):
    path = _write(tmp_path / "points.csv", "1,2,3\n")
    (tmp_path / "image.csv").write_bytes(b"\x1f\x8b\xff\xfe")

    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read_points(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="not text"):
        read_points(tmp_path / "image.csv")
    with pytest.raises(ValueError, match="give the affine"):
        read_points(path, "voxel")
    with pytest.raises(ValueError, match="space must be one of"):
        read_points(path, "LPS")


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 3), min_size=1, max_size=20),
    space=st.sampled_from(["voxel", "ras", "lps"]),
)
def test_written_points_read_back_in_every_space(tmp_path, points, space):
    points_mm = torch.tensor(points, dtype=torch.float64)
    path = tmp_path / "points.csv"

    write_points(path, points_mm, space, torch.as_tensor(AFFINE))

    # six decimals of a number; a voxel is at most 3 mm
    torch.testing.assert_close(read_points(path, space, torch.as_tensor(AFFINE)), points_mm, rtol=0, atol=3e-6)


def test_files_of_voxels_are_bare_as_learn2reg_has_them_and_files_of_mm_name_their_space(tmp_path):
    points_mm = torch.as_tensor(AFFINE[:3, :3] @ (1.0, 2.0, 3.0) + AFFINE[:3, 3])[None]

    write_points(tmp_path / "voxel.csv", points_mm, "voxel", torch.as_tensor(AFFINE))
    write_points(tmp_path / "lps.csv", torch.tensor([[1.0, 2.0, 3.0]]), "lps")

    assert (tmp_path / "voxel.csv").read_text() == "1.000000,2.000000,3.000000\n"
    assert (tmp_path / "lps.csv").read_text() == "# x,y,z in mm, LPS\n-1.000000,-2.000000,3.000000\n"


@pytest.mark.parametrize("points", [torch.zeros(3), torch.zeros(4, 2), torch.tensor([[0.0, float("nan"), 0.0]])])
def test_points_that_cannot_be_written_leave_no_file(tmp_path, points):
    with pytest.raises(ValueError, match=r"\(N, 3\) and finite"):
        write_points(tmp_path / "points.csv", points)

    assert not list(tmp_path.iterdir())


def test_real_elastix_landmarks_in_mm_and_in_voxels_lie_on_the_voxels_they_were_set_on(data_dir):
    folder = data_dir / "LungCTelastix"
    image = sitk.ReadImage(str(folder / "baseline.mha"))
    ras_to_lps = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = (
        ras_to_lps[:, None] * torch.tensor(image.GetDirection()).reshape(3, 3) * torch.tensor(image.GetSpacing())
    )
    affine[:3, 3] = ras_to_lps * torch.tensor(image.GetOrigin())

    landmarks = read_points(folder / "baseline_landmarks_mm.txt")
    indexed = read_points(folder / "baseline_points_index.txt", affine=affine)

    assert landmarks.shape == (100, 3)
    assert indexed.shape == (10, 3)
    lps = (torch.cat([landmarks, indexed]) * ras_to_lps).tolist()
    indices = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in lps])
    np.testing.assert_allclose(indices, indices.round(), atol=2e-3)  # mm are rounded to three decimals
    assert indices[100].round().tolist() == [94, 92, 114]  # its first line


def test_real_landmarks_before_registration_are_as_far_apart_as_published(data_dir):
    # two csv flavours: mm with a comment line, and bare voxels; errors as the data page states them
    def error(fixed, moving):
        return torch.linalg.vector_norm(fixed - moving, dim=1).mean().item()

    voxel_size = torch.diag(torch.tensor([1.75, 1.25, 1.75, 1.0]))
    lungs = [data_dir / "LungCT" / "landmarksTr" / f"LungCT_0001_000{modality}.csv" for modality in (0, 1)]
    phases = sorted((data_dir / "LiverMR4D").glob("*/cyc_*_landmarks_liver.csv"))

    lung_error = error(*(read_points(path, "voxel", voxel_size) for path in lungs))
    liver_errors = [
        error(read_points(path.parent / "exhMaster_landmarks_liver.csv", "lps"), read_points(path, "lps"))
        for path in phases
    ]

    assert len(liver_errors) == 6
    assert lung_error == pytest.approx(20.18, abs=0.01)
    assert np.mean(liver_errors) == pytest.approx(12.38, abs=0.05)
