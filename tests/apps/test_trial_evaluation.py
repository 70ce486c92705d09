# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, ConcatItemsd

from monai_reg_ext.apps import TrialEvaluation
from monai_reg_ext.data import phantom_pair
from monai_reg_ext.metrics import compute_learn2reg_dice, compute_learn2reg_hd95, compute_sdlogj, compute_tre
from monai_reg_ext.transforms import DDFToFixedGridd, ResampleToFixedd, WarpByDDFd

SIZE = (12, 11, 7)
# axes swapped, one flipped, spacing 2 x 1 x 3: one voxel along axis 0 is -2 mm along world axis 1
AFFINE = torch.tensor([[0.0, 1, 0, 5], [-2, 0, 0, 7], [0, 0, 3, 9], [0, 0, 0, 1]], dtype=torch.float64)
POSTPROCESSING = Compose([DDFToFixedGridd(keys="pred"), WarpByDDFd()])


def volume(values) -> MetaTensor:
    return MetaTensor(torch.as_tensor(values).expand(1, *SIZE).clone(), affine=AFFINE)


def prepared(name: str, **more) -> dict:
    """A pair as the preprocessing leaves it, whose images show nothing."""
    images = {key: volume(0.0) for key in ("fixed", "moving", "fixed_working", "moving_working")}
    return {"pair": name, **images, "image": torch.zeros(2, *SIZE), "initial": torch.eye(4).double(), **more}


def pair_of_blocks(name: str, *shifts: int) -> dict:
    """A label per shift: three planes thick, and so many voxels further along axis 0 in the moving image."""
    fixed_label, moving_label = volume(0).int(), volume(0).int()
    for index, shift in enumerate(shifts):
        columns = slice(1 + 5 * index, 4 + 5 * index)
        fixed_label[:, 4:7, columns, 2:6] = moving_label[:, 4 + shift : 7 + shift, columns, 2:6] = index + 1
    return prepared(name, fixed_label=fixed_label, moving_label=moving_label)


def pair_of_points(name: str, *errors_mm: float) -> dict:
    """A point per error, so far from its place along world axis 1."""
    fixed_points = torch.tensor([[7.0, 0.0, 15.0]]).repeat(len(errors_mm), 1).double()
    moving_points = fixed_points.clone()
    moving_points[:, 1] += torch.tensor(errors_mm, dtype=torch.float64)
    return prepared(name, fixed_points=fixed_points, moving_points=moving_points)


def shifts_along_axis_0(*voxels: float):
    """A way to register that finds one shift per pair, in the order of the pairs."""
    fields = iter(voxels)

    def register(image: torch.Tensor) -> torch.Tensor:
        ddf = torch.zeros(1, 3, *image.shape[2:])
        ddf[:, 0] = next(fields)
        return ddf

    return register


def test_with_labels_the_hard_ones_are_those_that_overlapped_least_before():
    # Dice before 2/3 and 1/3, 1 and 0: of the four labels one is hard, the last
    evaluation = TrialEvaluation([pair_of_blocks("a", 1, 2), pair_of_blocks("b", 0, 3)], POSTPROCESSING)

    values = evaluation(shifts_along_axis_0(2, 3))

    # one and none, three and none voxels remain; by the overlap after registration another one would be the hardest
    dice = (np.mean([2 / 3, 1]) + np.mean([0, 1])) / 2
    hd95 = (np.mean([1, 0]) + np.mean([3, 0])) / 2
    assert values == pytest.approx({"dice": 100 * dice, "dice_hard": 100, "hd95": hd95, "sdlogj": 0}, abs=1e-6)
    assert tuple(values) == evaluation.metric_names


def test_with_points_the_hard_ones_are_those_that_lay_farthest_before():
    # of the seven points two are hard, those 10 and 5 mm away
    evaluation = TrialEvaluation([pair_of_points("a", 1, 2, 3, 4, 5), pair_of_points("b", 10, 4.5)], POSTPROCESSING)

    values = evaluation(shifts_along_axis_0(-2, 0))

    # two voxels back are 4 mm forward; pairs count alike, however many points they have
    tre_mm = (np.mean([3, 2, 1, 0, 1]) + np.mean([10, 4.5])) / 2
    assert values == pytest.approx({"tre_mm": tre_mm, "tre_hard_mm": (10 + 1) / 2, "sdlogj": 0}, abs=1e-6)
    assert tuple(values) == evaluation.metric_names


def test_a_single_label_is_the_hardest():
    evaluation = TrialEvaluation([pair_of_blocks("a", 1)], POSTPROCESSING)

    assert evaluation(shifts_along_axis_0(1))["dice_hard"] == pytest.approx(100)


def test_labels_count_where_there_are_points_too():
    both = {**pair_of_points("a", 1), **pair_of_blocks("a", 1)}

    assert "dice" in TrialEvaluation([both], POSTPROCESSING).metric_names


@pytest.mark.parametrize("kind", ["labels", "points"])
def test_figures_are_those_of_the_metrics_after_the_postprocessing(kind):
    # a working grid other than the fixed one, a moving image that lies elsewhere, fields that are not smooth
    preprocessing = Compose(
        [ResampleToFixedd(spacing=9.0, initial="centres"), ConcatItemsd(["moving_working", "fixed_working"], "image")]
    )
    pairs = [preprocessing(shifted_phantom(seed, kind)) for seed in (0, 1)]
    fields = [2 * torch.rand(1, 3, *pair["image"].shape[1:]) for pair in pairs]
    remaining = iter(fields)

    values = TrialEvaluation(pairs, POSTPROCESSING)(lambda image: next(remaining))

    before = [POSTPROCESSING({**pair, "pred": torch.zeros(3, *pair["image"].shape[1:])}) for pair in pairs]
    after = [POSTPROCESSING({**pair, "pred": field[0]}) for pair, field in zip(pairs, fields, strict=True)]
    errors = [np.concatenate([errors_of(pair, kind) for pair in state]) for state in (before, after)]
    hardest = sorted(range(len(errors[0])), key=lambda index: -errors[0][index])[: round(0.3 * len(errors[0]))]
    mean, hard = np.mean([errors_of(pair, kind).mean() for pair in after]), errors[1][hardest].mean()
    expected = {"sdlogj": np.mean([compute_sdlogj(pair["pred"][None].as_tensor()).item() for pair in after])}
    if kind == "points":
        expected |= {"tre_mm": mean, "tre_hard_mm": hard}
    else:
        surfaces = [compute_learn2reg_hd95(*labels_of(pair)).numpy().mean() for pair in after]
        expected |= {"dice": 100 * (1 - mean), "dice_hard": 100 * (1 - hard), "hd95": np.mean(surfaces)}
    assert values == pytest.approx(expected)


def shifted_phantom(seed: int, kind: str) -> dict:
    pair = phantom_pair(size=(32, 28, 24), spacing=(6, 6, 8), max_displacement_mm=10, seed=seed)
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([12.0, -18, 24])
    for key in ("moving", "moving_label"):
        pair[key].affine = shift @ pair[key].affine
    pair["moving_points"] = pair["moving_points"] + shift[:3, 3]
    unused = "points" if kind == "labels" else "label"
    return {key: value for key, value in pair.items() if not key.endswith(unused)}


def labels_of(pair: dict) -> list[torch.Tensor]:
    return [pair[key] for key in ("warped_label", "fixed_label", "moving_label")]


def errors_of(pair: dict, kind: str) -> np.ndarray:
    if kind == "labels":
        return 1 - compute_learn2reg_dice(*labels_of(pair)).numpy()
    pred = pair["pred"]
    return compute_tre(pred.as_tensor(), pred.affine, pair["fixed_points"], pair["moving_points"]).numpy()


def test_registration_runs_without_gradients_on_a_batch_of_one():
    seen = []

    def register(image):
        seen.append((torch.is_grad_enabled(), tuple(image.shape)))
        return torch.zeros(1, 3, *SIZE)

    TrialEvaluation([pair_of_points("a", 1)], POSTPROCESSING)(register)

    assert seen == [(False, (1, 2, *SIZE))]


def test_the_pairs_stay_as_they_are_from_trial_to_trial():
    evaluation = TrialEvaluation([pair_of_blocks("a", 1, 2)], POSTPROCESSING)

    first, second = (evaluation(shifts_along_axis_0(1)) for _ in range(2))

    assert first == second
    assert "pred" not in evaluation.pairs[0]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no pairs to measure on"),
        ([prepared("bare")], "pair bare has neither label maps nor points"),
        ([{**pair_of_blocks("half", 1), "moving_label": None}], "pair half has neither"),
        ([pair_of_blocks("a", 1), pair_of_points("b", 1)], "some pairs have label maps, others only points"),
        ([pair_of_blocks("a", 1), pair_of_blocks("empty")], "pair empty: there is no label in common"),
        ([pair_of_points("a", 1), pair_of_points("empty")], "pair empty: there is no label in common, or no point"),
    ],
)
def test_pairs_that_cannot_be_measured_are_refused_before_the_first_trial(pairs, message):
    with pytest.raises(ValueError, match=message):
        TrialEvaluation(pairs, POSTPROCESSING)
