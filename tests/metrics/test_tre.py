# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from monai_reg_ext.metrics import TREMetric, compute_learn2reg_tre, compute_tre

SIZE = (12, 10, 14)
# axes swapped and tilted, one flipped, spacing 1.5 x 2 x 3
TILT = np.array([[0.0, -0.6, 0.8], [1, 0, 0], [0, 0.8, 0.6]]) @ np.diag([1.5, -2.0, 3.0])
AFFINE = torch.eye(4, dtype=torch.float64)
AFFINE[:3, :3] = torch.from_numpy(TILT)
AFFINE[:3, 3] = torch.tensor([-40.0, 12, 70])


def to_mm(points_voxel: torch.Tensor, affine: torch.Tensor = AFFINE) -> torch.Tensor:
    return points_voxel @ affine[:3, :3].T + affine[:3, 3]


def points_inside(count: int = 20) -> torch.Tensor:
    return torch.rand(count, 3, dtype=torch.float64) * (torch.tensor(SIZE) - 1)


def test_without_displacement_the_error_is_the_distance_of_the_points_in_mm():
    fixed, moving = to_mm(points_inside()), to_mm(points_inside())

    result = compute_tre(torch.zeros(3, *SIZE), AFFINE, fixed, moving)

    torch.testing.assert_close(result, (fixed - moving).norm(dim=1))


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_a_constant_displacement_that_is_right_leaves_no_error(interpolation):
    points, shift = points_inside(), torch.tensor([2.25, -1.5, 0.75], dtype=torch.float64)
    ddf = shift[:, None, None, None].expand(3, *SIZE)

    result = compute_tre(ddf, AFFINE, to_mm(points), to_mm(points + shift), interpolation)

    torch.testing.assert_close(result, torch.zeros(20, dtype=torch.float64), atol=1e-9, rtol=0)


def test_one_slice_too_far_is_an_error_of_the_slice_thickness():
    points = points_inside()
    ddf = torch.zeros(3, *SIZE)
    ddf[2] = 1.0

    result = compute_tre(ddf, AFFINE, to_mm(points), to_mm(points))

    torch.testing.assert_close(result, torch.full((20,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize(("shift", "unsnapped", "snapped"), [(2.4, 0.4, 0.0), (2.6, 0.6, 1.0)])
def test_snapped_points_go_to_the_nearest_voxel_of_the_moving_image(shift, unsnapped, snapped):
    # the moving image's voxels are as large and lie on those of the fixed one, three further along axis 0
    moving_affine = AFFINE.clone()
    moving_affine[:3, 3] = to_mm(torch.tensor([3.0, 0, 0], dtype=torch.float64))
    fixed = torch.tensor([[4.0, 5, 6], [2, 3, 9]], dtype=torch.float64)
    ddf = torch.zeros(3, *SIZE)
    ddf[0] = shift
    points = to_mm(fixed), to_mm(fixed + torch.tensor([2.0, 0, 0]))

    plain = compute_tre(ddf, AFFINE, *points)
    rounded = compute_tre(ddf, AFFINE, *points, snap_affine=moving_affine)

    # a voxel along axis 0 is 1.5 mm long
    torch.testing.assert_close(plain, torch.full((2,), 1.5 * unsnapped, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(rounded, torch.full((2,), 1.5 * snapped, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_displacement_is_read_at_the_place_of_the_point():
    matrix = torch.tensor([[0.1, 0.02, -0.05], [0.03, -0.2, 0.04], [0.01, 0.07, 0.15]], dtype=torch.float64)
    ddf = torch.einsum("ca,aijk->cijk", matrix, torch.from_numpy(np.indices(SIZE, dtype=np.float64)))
    points = points_inside()

    result = compute_tre(ddf, AFFINE, to_mm(points), to_mm(points + points @ matrix.T))

    torch.testing.assert_close(result, torch.zeros(20, dtype=torch.float64), atol=1e-9, rtol=0)


def test_simpleitk_moves_the_points_to_the_same_places():
    ddf, points = torch.randn(3, *SIZE, dtype=torch.float64), points_inside()
    fixed, moving = to_mm(points), to_mm(points_inside())
    lps = np.diag([-1.0, -1, 1])
    field = sitk.GetImageFromArray(np.einsum("wc,cijk->kjiw", lps @ TILT, ddf.numpy()), isVector=True)
    spacing = np.linalg.norm(TILT, axis=0)
    field.SetSpacing(spacing.tolist())
    field.SetDirection((lps @ TILT / spacing).ravel().tolist())
    field.SetOrigin((lps @ AFFINE[:3, 3].numpy()).tolist())
    transform = sitk.DisplacementFieldTransform(field)

    result = compute_tre(ddf, AFFINE, fixed, moving)

    moved = np.array([transform.TransformPoint(point) for point in (fixed.numpy() @ lps).tolist()]) @ lps
    np.testing.assert_allclose(result.numpy(), np.linalg.norm(moved - moving.numpy(), axis=1), atol=1e-6)


def test_cubic_splines_follow_a_smooth_field_and_lines_cut_its_corners():
    ddf = torch.zeros(3, *SIZE, dtype=torch.float64)
    ddf[0] = torch.sin(torch.arange(14.0))
    points = torch.tensor([[6.0, 5.0, 5.5], [4.0, 3.0, 8.25]], dtype=torch.float64)
    moved = points + torch.stack([torch.sin(points[:, 2]), *torch.zeros(2, 2)], dim=1)

    linear = compute_tre(ddf, AFFINE, to_mm(points), to_mm(moved))
    cubic = compute_tre(ddf, AFFINE, to_mm(points), to_mm(moved), "cubic")
    metric = TREMetric("cubic")([ddf], [to_mm(moved)], fixed_points_mm=[to_mm(points)], affine=[AFFINE])

    assert linear.min() > 0.1
    assert cubic.max() < 0.01
    assert metric.item() == pytest.approx(cubic.mean().item())


def test_the_outermost_voxels_reach_half_a_voxel_beyond_their_centres():
    ddf = torch.randn(3, *SIZE, dtype=torch.float64)
    points = torch.tensor([[-0.5, 3.0, 5.0], [11.4, 9.0, 2.0]], dtype=torch.float64)
    at_border = torch.stack([ddf[:, 0, 3, 5], ddf[:, 11, 9, 2]])

    result = compute_tre(ddf, AFFINE, to_mm(points), to_mm(points + at_border))

    torch.testing.assert_close(result, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)


def test_points_outside_the_fixed_image_are_counted_in_the_refusal():
    points = points_inside(5)
    points[1, 0], points[3, 2], points[4, 1] = -0.6, 14.0, torch.nan

    with pytest.raises(ValueError, match=r"3 of 5 fixed points lie outside .* \(12, 10, 14\), the first is row 1"):
        compute_tre(torch.zeros(3, *SIZE), AFFINE, to_mm(points), to_mm(points))


@pytest.mark.parametrize(("fixed", "moving"), [((5, 3), (4, 3)), ((5, 2), (5, 2)), ((3,), (3,))])
def test_points_that_do_not_correspond_are_refused(fixed, moving):
    with pytest.raises(ValueError, match="two sets \\(N, 3\\) with the same N"):
        compute_tre(torch.zeros(3, *SIZE), AFFINE, torch.zeros(fixed), torch.zeros(moving))


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="linear"):
        compute_tre(torch.zeros(3, *SIZE), AFFINE, to_mm(points_inside()), to_mm(points_inside()), "liner")


def test_the_metric_takes_pairs_with_different_numbers_of_points():
    counts = (4, 7)
    fixed = [to_mm(points_inside(count)) for count in counts]
    moving = [points + torch.tensor([3.0, 4.0, 0.0]) * (item + 1) for item, points in enumerate(fixed)]

    metric = TREMetric()
    metric([torch.zeros(3, *SIZE)] * 2, moving, fixed_points_mm=fixed, affine=[AFFINE] * 2)

    assert metric.get_buffer().flatten().tolist() == pytest.approx([5.0, 10.0])
    assert metric.aggregate().item() == pytest.approx(7.5)


def test_learn2reg_counts_in_voxels_times_the_spacing_of_the_moving_image():
    fixed = torch.tensor([[2.0, 3.0, 4.0]])
    ddf = torch.zeros(3, *SIZE)
    ddf[1] = 1.0

    result = compute_learn2reg_tre(ddf, fixed, fixed + torch.tensor([[3.0, 0.0, 1.0]]), moving_spacing=(2.0, 0.5, 4.0))

    assert result.item() == pytest.approx(np.linalg.norm([3 * 2.0, 1 * 0.5, 1 * 4.0]))


def test_learn2reg_does_not_move_points_outside_the_grid():
    ddf = torch.ones(3, *SIZE)
    points = torch.tensor([[-0.01, 3.0, 4.0], [0.01, 3.0, 4.0]])

    result = compute_learn2reg_tre(ddf, points, points, moving_spacing=(1.0, 1.0, 1.0))

    assert result.tolist() == pytest.approx([0.0, np.sqrt(3)], abs=1e-6)


def test_golden_tre(golden_dir):
    golden = np.load(golden_dir / "learn2reg_metrics.npz")
    ddf = torch.from_numpy(golden["displacement"]).movedim(-1, 0)
    fixed, moving = (torch.from_numpy(golden[f"{name}_landmarks"]) for name in ("fixed", "moving"))

    result = compute_learn2reg_tre(ddf, fixed, moving, golden["spacing"])

    np.testing.assert_allclose(result.numpy(), golden["tre"], atol=1e-6)


def test_physical_and_voxel_error_agree_where_both_images_share_grid_and_axes(golden_dir):
    golden = np.load(golden_dir / "learn2reg_metrics.npz")
    ddf = torch.from_numpy(golden["displacement"]).movedim(-1, 0)
    affine = torch.diag(torch.tensor([*golden["spacing"], 1.0]))
    fixed, moving = (torch.from_numpy(golden[f"{name}_landmarks"] * golden["spacing"]) for name in ("fixed", "moving"))

    result = compute_tre(ddf, affine, fixed, moving, interpolation="cubic")

    np.testing.assert_allclose(result.numpy(), golden["tre"], atol=1e-5)  # the affine here is float32


def test_lung_landmarks_start_from_the_known_error(data_dir):
    folder, spacing, initial = data_dir / "LungCT" / "landmarksTr", (1.75, 1.25, 1.75), []
    for case in (1, 2, 3):
        fixed, moving = (
            torch.from_numpy(np.loadtxt(folder / f"LungCT_{case:04}_{modality}.csv", delimiter=",") * spacing)
            for modality in ("0000", "0001")
        )
        no_field = torch.zeros(1).expand(3, 192, 192, 208)
        initial.append(compute_tre(no_field, torch.diag(torch.tensor([*spacing, 1])), fixed, moving).mean().item())

    assert initial == pytest.approx([20.18, 15.60, 8.14], abs=0.005)


@pytest.mark.parametrize(("case", "expected"), [(1, 20.18), (2, 15.60), (3, 8.14)])
def test_lung_landmarks_are_as_far_apart_before_registration_as_published(data_dir, case, expected):
    paths = [data_dir / "LungCT" / "landmarksTr" / f"LungCT_{case:04d}_{side:04d}.csv" for side in (0, 1)]
    if not paths[0].is_file():
        pytest.skip("no landmarks of LungCT")
    fixed, moving = (torch.from_numpy(np.loadtxt(path, delimiter=",")) for path in paths)
    spacing = torch.tensor([1.75, 1.25, 1.75, 1.0], dtype=torch.float64)
    affine, ddf = torch.diag(spacing), torch.zeros(3, 192, 192, 208)

    in_mm = compute_tre(ddf, affine, to_mm(fixed, affine), to_mm(moving, affine))
    # points outside a small grid are not moved, as by the zeros of a large one
    of_challenge = compute_learn2reg_tre(ddf[:, :9, :8, :7], fixed, moving, spacing[:3].tolist())

    assert in_mm.mean().item() == pytest.approx(expected, abs=0.005)
    torch.testing.assert_close(of_challenge, in_mm)
