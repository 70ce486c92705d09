# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from monai_reg_ext.networks.layers.least_trimmed_squares import LINEAR_KINDS, fit_linear, least_trimmed_squares


def transform(kind: str) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    turn = torch.from_numpy(Rotation.from_rotvec([0.3, -0.5, 0.9]).as_matrix())
    stretch = {"rigid": torch.eye(3), "similarity": 1.3 * torch.eye(3)}
    stretch["affine"] = torch.tensor([[1.1, 0.2, 0], [0, 0.8, -0.1], [0, 0, 1.4]])
    matrix[:3, :3] = turn @ stretch[kind].double()
    matrix[:3, 3] = torch.tensor([30.0, -7.0, 11.0])
    return matrix


def moved(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def random_points(count: int) -> torch.Tensor:
    return torch.rand(count, 3, dtype=torch.float64) * torch.tensor([80.0, 50.0, 20.0])


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_a_transform_of_each_kind_is_found_from_its_points(kind):
    points = random_points(12)

    found = fit_linear(points, moved(points, transform(kind)), kind)

    torch.testing.assert_close(found, transform(kind))


def test_rotation_is_that_of_scipy():
    points, weights = random_points(9), torch.rand(9, dtype=torch.float64)
    targets = random_points(9)
    centred = [values - (weights[:, None] * values).sum(0) / weights.sum() for values in (targets, points)]

    found = fit_linear(points, targets, "rigid", weights)

    oracle, _ = Rotation.align_vectors(*(values.numpy() for values in centred), weights=weights.numpy())
    torch.testing.assert_close(found[:3, :3], torch.from_numpy(oracle.as_matrix()))


def test_mirrored_points_give_a_rotation_all_the_same():
    points = random_points(9)

    linear = fit_linear(points, points * torch.tensor([-1.0, 1.0, 1.0]), "rigid")[:3, :3]

    torch.testing.assert_close(linear @ linear.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(linear) == pytest.approx(1)


def test_scale_is_the_best_of_all_for_its_rotation():
    points, targets = random_points(9), random_points(9)

    found = fit_linear(points, targets, "similarity")

    def error(scale: float) -> float:
        centre = points.mean(0)
        matrix = found.clone()
        matrix[:3, :3] *= scale
        matrix[:3, 3] = targets.mean(0) - matrix[:3, :3] @ centre
        return (moved(points, matrix) - targets).square().sum().item()

    assert error(1.0) < min(error(0.99), error(1.01))


def test_affine_is_that_of_numpy_least_squares():
    points, targets, weights = random_points(11), random_points(11), torch.rand(11, dtype=torch.float64)

    found = fit_linear(points, targets, "affine", weights)

    root = weights.sqrt()[:, None].numpy()
    design = np.concatenate([points.numpy(), np.ones((11, 1))], 1)
    oracle = np.linalg.lstsq(root * design, root * targets.numpy(), rcond=None)[0].T
    torch.testing.assert_close(found[:3], torch.from_numpy(oracle))


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_wrong_correspondences_do_not_matter_as_long_as_the_kept_part_is_right(kind):
    points = random_points(100)
    targets = moved(points, transform(kind))
    targets[:30] += torch.tensor([20.0, -30.0, 10.0]) * torch.rand(30, 1)

    torch.testing.assert_close(least_trimmed_squares(points, targets, kind, fraction=0.6), transform(kind))
    assert not torch.allclose(fit_linear(points, targets, kind), transform(kind), atol=0.1)


def test_the_kept_part_is_a_part_of_the_weight():
    points = random_points(60)
    targets = moved(points, transform("affine"))
    targets[:40] += torch.tensor([9.0, 0.0, 0.0])  # most of the points, but a third of the weight
    weights = torch.cat([torch.full((40,), 1.0), torch.full((20,), 4.0)]).double()

    found = least_trimmed_squares(points, targets, "affine", weights, fraction=0.6)

    torch.testing.assert_close(found, transform("affine"))


def test_everything_kept_is_the_plain_fit():
    points, targets = random_points(20), random_points(20)

    found = least_trimmed_squares(points, targets, "affine", fraction=1.0)

    torch.testing.assert_close(found, fit_linear(points, targets, "affine"))


def test_points_without_weight_do_not_matter():
    points, targets = random_points(20), random_points(20)
    weights = (torch.arange(20) < 15).double()

    torch.testing.assert_close(fit_linear(points, targets, "affine", weights), fit_linear(points[:15], targets[:15]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "elastic"}, "kind must be one of"),
        ({"points": torch.zeros(5, 3)}, r"points and targets \(N, 3\)"),
        ({"weights": torch.ones(5)}, r"weights \(N,\)"),
        ({"weights": torch.tensor([1.0, 1, 1, 0, 0, 0])}, "affine needs at least 4 points with weight, got 3"),
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"fraction": 1.1}, "fraction must be above 0"),
        ({"points": torch.ones(6, 3)}, "lie in one plane"),
    ],
)
def test_what_cannot_be_fitted_is_refused(given, message):
    points = random_points(6)

    with pytest.raises(ValueError, match=message):
        least_trimmed_squares(**{"points": points, "targets": points, "kind": "affine", **given})
