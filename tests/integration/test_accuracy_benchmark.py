# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib import import_module

import itk
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.utils import optional_import

from monai_reg_ext.data import write_points
from monai_reg_ext.transforms import SpatialDisplacement, grid_voxels, voxel_to_mm

_, has_fire = optional_import("fire")
_, has_ants = optional_import("ants")
has_elastix = hasattr(itk, "ElastixRegistrationMethod")

SHIFT_MM = torch.tensor([5.0, -3.0, 4.0], dtype=torch.float64)
OBLIQUE = torch.tensor(
    [[1.92, 0.644, 0.0, -46.0], [-0.56, 2.208, 0.0, -18.0], [0.0, 0.0, 3.1, -36.0], [0.0, 0.0, 0.0, 1.0]],
    dtype=torch.float64,
)
FLIPPED = torch.diag(torch.tensor([-2.1, 2.0, 2.7, 1.0], dtype=torch.float64))
FLIPPED[:3, 3] = torch.tensor([46.0, -44.0, -40.0])


@pytest.fixture
def script(monkeypatch, bundles_dir):
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    return import_module


def anatomy(points_mm: torch.Tensor) -> torch.Tensor:
    """Blobs in space, so that no scan of it is an interpolation of another."""
    rng = np.random.default_rng(0)
    blobs = zip(rng.uniform(-28, 28, (30, 3)), rng.uniform(5, 9, 30), rng.uniform(40, 160, 30), strict=True)
    return sum(
        height * torch.exp(-_distance(points_mm, centre).square() / (2 * width**2)) for centre, width, height in blobs
    )


def _distance(points_mm: torch.Tensor, centre: np.ndarray) -> torch.Tensor:
    return torch.linalg.vector_norm(points_mm - torch.from_numpy(centre).reshape(3, 1, 1, 1), dim=0)


def scan(size: tuple[int, ...], affine: torch.Tensor, shift_mm: torch.Tensor) -> MetaTensor:
    positions = grid_voxels(size, affine, dtype=torch.float64) + shift_mm[:, None, None, None]
    return MetaTensor(anatomy(positions)[None].float(), affine=affine)


@pytest.fixture(scope="module")
def pair() -> dict[str, MetaTensor]:
    """The point p of the fixed scan shows what the moving one has at ``p + SHIFT_MM``."""
    return {"fixed": scan((40, 27, 25), OBLIQUE, SHIFT_MM), "moving": scan((44, 45, 31), FLIPPED, 0 * SHIFT_MM)}


@pytest.mark.parametrize(
    ("module", "function", "options"),
    [
        pytest.param(
            "elastix_method",
            "register_with_elastix",
            {"stages": ["affine"]},
            marks=pytest.mark.skipif(not has_elastix, reason="itk-elastix is not installed"),
        ),
        pytest.param(
            "ants_method",
            "register_with_ants",
            {"kind": "SyN"},
            marks=pytest.mark.skipif(not has_ants, reason="antspyx is not installed"),
        ),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_fields_of_other_packages_lead_to_where_the_anatomy_went(script, pair, module, function, options, masked):
    masks = (
        {f"{side}_mask": torch.ones_like(image, dtype=torch.uint8) for side, image in pair.items()} if masked else {}
    )
    for mask in masks.values():
        mask[:, -1] = 0

    field = getattr(script(module), function)({**pair, **masks}, **options)

    inner = torch.tensor([[20.0, 13, 12], [14, 10, 9], [27, 17, 15], [16, 18, 14]], dtype=torch.float64)
    points_mm = voxel_to_mm(inner, OBLIQUE)
    torch.testing.assert_close(field.affine, OBLIQUE)
    assert field.size == (40, 27, 25)
    # less than a voxel, where a wrong sign, order or frame is 7 mm and more off
    assert (field.warp_points(points_mm) - points_mm - SHIFT_MM).norm(dim=1).max() < 2.0


def test_of_lung_landmarks_only_those_inside_both_images_are_measured(script, tmp_path):
    folder = tmp_path / "LungCTelastix"
    folder.mkdir()
    for name, origin in (("baseline", (0.0, 0.0, 0.0)), ("followup", (10.0, 0.0, 0.0))):
        image = itk.image_from_array(np.arange(4 * 5 * 6, dtype=np.int16).reshape(6, 5, 4))
        image.SetSpacing((2.0, 3.0, 4.0))
        image.SetOrigin(origin)
        itk.imwrite(image, str(folder / f"{name}.mha"))
    # LPS; x reaches from -1 to 7 in the baseline, from 9 to 17 in the follow-up
    baseline = [(-0.9, 3, 4), (7.5, 3, 4), (3, 3, 4), (6.9, 3, 4)]
    followup = [(9.1, 3, 4), (12, 3, 4), (8.5, 3, 4), (16.9, 3, 4)]
    for name, points in (("baseline_landmarks_mm", baseline), ("followup_landmarks_reference_mm", followup)):
        rows = "".join(f"{x} {y} {z}\n" for x, y, z in points)
        (folder / f"{name}.txt").write_text(f"point\n{len(points)}\n{rows}")
    for name in ("baseline", "followup"):
        (folder / f"{name}_points_index.txt").write_text("index\n1\n1 2 3\n")

    (found,) = script("accuracy_pairs").benchmark_pairs("LungCTelastix", tmp_path)

    assert found["fixed_points"].tolist() == [[0.9, -3, 4], [-6.9, -3, 4]]
    assert found["moving_points"].tolist() == [[-9.1, -3, 4], [-16.9, -3, 4]]
    assert found["more_points"]["clicks"]["moving"].tolist() == [[-12, -6, 12]]


def test_liver_phases_have_both_kinds_of_landmarks_and_the_voxel_size_that_is_right(script, tmp_path):
    for person, phases in script("accuracy_pairs").LIVER_PHASES.items():
        for number, name in enumerate(("exhMaster", *phases)):
            points = torch.tensor([[1.0, 2.0, 3.0]]) + number
            write_points(tmp_path / "LiverMR4D" / person / f"{name}_landmarks_outside.csv", points, "lps")

    pairs = list(script("accuracy_pairs").benchmark_pairs("LiverMR4D", tmp_path))

    assert len(pairs) == 6
    assert pairs[1]["more_points"]["outside"]["moving"].tolist() == [[3, 4, 5]]
    assert [pair.get("moving_spacing") for pair in pairs] == [(1.36719, 1.36719, 4.0), *[None] * 5]


@pytest.mark.skipif(not has_fire, reason="fire is not installed")
def test_a_field_that_moves_points_onto_their_partners_has_no_error_for_both_kinds_of_landmarks(script):
    ddf = torch.tensor([1.0, -2.0, 0.5]).reshape(3, 1, 1, 1).expand(3, 9, 8, 7)
    field = SpatialDisplacement(ddf, OBLIQUE)
    fixed = voxel_to_mm(torch.tensor([[2.0, 3, 4], [5, 5, 2]]), OBLIQUE)
    moved_mm = OBLIQUE[:3, :3] @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    off_mm = torch.tensor([0.0, 3.0, 4.0])
    item = {
        "fixed_points": fixed,
        "moving_points": fixed + moved_mm,
        "more_points": {"outside": {"fixed": fixed, "moving": fixed + moved_mm + off_mm}},
    }

    values = script("accuracy")._measure(item, field)

    assert values["tre_mm"] == pytest.approx(0, abs=1e-5)
    assert values["tre_mm_before"] == pytest.approx(moved_mm.norm().item())
    assert values["outside_mm"] == pytest.approx(5, abs=1e-5)
    assert values["folding_percent"] == 0


@pytest.mark.skipif(not has_fire, reason="fire is not installed")
def test_folding_outside_the_fixed_mask_is_not_counted(script):
    ddf = torch.zeros(3, 20, 9, 8)
    ddf[0, 15:, :, :] = -2.0 * torch.arange(5)[:, None, None]  # det J = 1 - 2
    mask = torch.zeros(1, 20, 9, 8, dtype=torch.uint8)
    mask[:, :12] = 1
    field = SpatialDisplacement(ddf, OBLIQUE)

    measure = script("accuracy")._measure

    assert measure({}, field)["folding_percent"] > 5
    assert measure({"fixed_mask": MetaTensor(mask, affine=OBLIQUE)}, field)["folding_percent"] == 0


@pytest.mark.skipif(not has_fire, reason="fire is not installed")
def test_no_motion_leaves_the_phantoms_landmarks_where_they_were(script, tmp_path):
    accuracy = script("accuracy")

    accuracy.main("phantom", methods="before", limit=1, output=str(tmp_path / "table.md"))

    *_, head, _, row = (tmp_path / "table.md").read_text().splitlines()
    values = dict(zip(head.split("|")[1:-1], row.split("|")[1:-1], strict=True))
    assert values[" method "] == " before "
    assert values[" tre_mm "] == values[" tre_mm_before "]
    assert float(values[" sdlogj "]) == 0


@pytest.mark.skipif(not has_fire, reason="fire is not installed")
def test_the_table_has_means_and_the_dice_that_seventy_percent_exceed(script):
    rows = {"ours": [{"dice": dice, "sdlogj": 0.1} for dice in range(11)]}

    *_, head, _, row = script("accuracy")._table("task", rows, (), {}).splitlines()

    assert head == "| method | dice | dice30 | sdlogj |"
    assert row == "| ours | 5 | 3 | 0.1 |"
