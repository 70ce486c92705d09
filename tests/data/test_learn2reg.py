# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from monai_reg_ext.data import Learn2RegDataset, Learn2RegTask


def _image(case, modality=0, subset="Tr"):
    return f"./images{subset}/Toy_{case:04d}_{modality:04d}.nii.gz"


def _pair(fixed, moving):
    return {"fixed": _image(*fixed), "moving": _image(*moving)}


def _make(folder, files=(), **content):
    """A task whose image files exist as far as its JSON names them, plus further files."""
    images = {path for path in _strings(content) if path.startswith("./images")}
    for path in (*images, *files):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    folder.mkdir(exist_ok=True)
    (folder / "Toy_dataset.json").write_text(json.dumps({"name": "Toy", **content}))
    return folder


def _strings(value):
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in values for text in _strings(item)]


def _relative(pair, folder):
    return {
        key: value if key in ("pair", "points_space") else str(Path(value).relative_to(folder))
        for key, value in pair.items()
    }


def test_an_explicit_pair_has_whatever_lies_beside_each_of_its_images(tmp_path):
    task = _make(
        tmp_path,
        ["labelsTr/Toy_0001_0000.nii.gz", "masksTr/Toy_0001_0001.nii.gz"],
        registration_val=[_pair((1, 0), (1, 1)), _pair((2, 0), (2, 1))],
    )

    first, second = Learn2RegTask(task).pairs()

    assert _relative(first, tmp_path) == {
        "pair": "Toy_0001_0000__Toy_0001_0001",
        "fixed": "imagesTr/Toy_0001_0000.nii.gz",
        "moving": "imagesTr/Toy_0001_0001.nii.gz",
        "fixed_label": "labelsTr/Toy_0001_0000.nii.gz",
        "moving_mask": "masksTr/Toy_0001_0001.nii.gz",
    }
    assert sorted(second) == ["fixed", "moving", "pair"]


def test_label_maps_and_masks_that_the_json_names_are_taken_from_where_it_says(tmp_path):
    named = {"image": _image(1), "label": "./organs/one.nii.gz", "mask": "./bodies/one.nii.gz"}
    files = ["organs/one.nii.gz", "bodies/one.nii.gz", "labelsTr/Toy_0001_0000.nii.gz"]
    task = _make(tmp_path, files, training=[named], registration_val=[_pair((1,), (2,))])

    (pair,) = Learn2RegTask(task).pairs()

    assert _relative(pair, tmp_path)["fixed_label"] == "organs/one.nii.gz"
    assert _relative(pair, tmp_path)["fixed_mask"] == "bodies/one.nii.gz"


def test_test_pairs_look_into_the_test_folders(tmp_path):
    task = _make(
        tmp_path,
        ["labelsTs/Toy_0007_0000.nii.gz", "labelsTr/Toy_0008_0000.nii.gz"],
        test=[_image(7, 0, "Ts"), _image(8, 0, "Ts")],
        registration_test=[_pair((7, 0, "Ts"), (8, 0, "Ts"))],
    )

    (pair,) = Learn2RegTask(task).pairs("registration_test")

    assert _relative(pair, tmp_path)["fixed_label"] == "labelsTs/Toy_0007_0000.nii.gz"
    assert "moving_label" not in pair


@pytest.mark.parametrize(
    ("files", "kinds", "folder"),
    [
        (["keypointsTr", "landmarksTr"], ("landmarks", "keypoints"), "landmarksTr"),
        (["keypointsTr", "landmarksTr"], ("keypoints", "landmarks"), "keypointsTr"),
        (["keypointsTr"], ("landmarks", "keypoints"), "keypointsTr"),
        (["keypointsTr"], ("landmarks",), None),
        (["keypointsTr", "keypoints01Tr"], ("keypoints",), "keypoints01Tr"),
        (["keypointsTr", "keypoints02Tr"], ("keypoints",), "keypointsTr"),
    ],
)
def test_points_are_csv_files_of_the_first_kind_there_is(tmp_path, files, kinds, folder):
    points = [f"{name}/Toy_0001_000{modality}.csv" for name in files for modality in (0, 1)]
    entry = {"image": _image(1, 0), "keypoints": "./keypointsTr/Toy_0001_0000.nii.gz"}  # as released
    task = _make(tmp_path, points, training=[entry], registration_val=[_pair((1, 1), (1, 0))])

    (pair,) = Learn2RegTask(task, point_kinds=kinds).pairs()

    if folder is None:
        assert not {"fixed_points", "moving_points", "points_space"} & pair.keys()
    else:
        assert _relative(pair, tmp_path)["fixed_points"] == f"{folder}/Toy_0001_0001.csv"
        assert _relative(pair, tmp_path)["moving_points"] == f"{folder}/Toy_0001_0000.csv"
        assert pair["points_space"] == "voxel"


def test_points_of_one_image_only_are_of_no_use(tmp_path):
    files = ["landmarksTr/Toy_0001_0000.csv", "keypointsTr/Toy_0001_0000.csv", "keypointsTr/Toy_0001_0001.csv"]
    task = _make(tmp_path, files, registration_val=[_pair((1, 0), (1, 1))])

    (pair,) = Learn2RegTask(task).pairs()

    assert _relative(pair, tmp_path)["fixed_points"] == "keypointsTr/Toy_0001_0000.csv"


def _training_task(tmp_path, points=()):
    return _make(
        tmp_path,
        points,
        training=[{"image": _image(1)}, _image(2), {"image": _image(3)}, _image(4), _image(5), _image(5, 1), _image(6)],
        registration_val=[_pair((1,), (2,))],
        registration_test=[_pair((6,), (7,))],
        training_paired_images=[_pair((1,), (3,)), _pair((3,), (4,)), _pair((5, 0), (5, 1)), _pair((3,), (6,))],
    )


def _cases(pair):
    return [name.split("_")[1] for name in pair["pair"].split("__")]


def test_random_training_pairs_join_different_cases_that_are_not_held_out(tmp_path):
    pairs = Learn2RegTask(_training_task(tmp_path)).pairs("training", number=100)

    # of 3, 4, 5 (two images): 6 pairs of images, less the one within case 5
    assert len(pairs) == 5
    assert {frozenset(_cases(pair)) for pair in pairs} == {
        frozenset(p) for p in (("0003", "0004"), ("0003", "0005"), ("0004", "0005"))
    }
    assert all(len(set(_cases(pair))) == 2 for pair in pairs)


def test_random_training_pairs_have_no_points_because_those_do_not_correspond(tmp_path):
    points = [f"landmarksTr/Toy_{case:04d}_0000.csv" for case in range(1, 8)]
    task = Learn2RegTask(_training_task(tmp_path, points))

    assert all("fixed_points" not in pair for pair in task.pairs("training"))
    assert "fixed_points" in task.pairs("training_paired_images")[0]


def test_listed_training_pairs_lose_those_that_touch_a_held_out_case(tmp_path):
    pairs = Learn2RegTask(_training_task(tmp_path)).pairs("training_paired_images")

    assert [pair["pair"] for pair in pairs] == ["Toy_0003_0000__Toy_0004_0000", "Toy_0005_0000__Toy_0005_0001"]


def test_subjects_are_the_training_images_that_are_not_held_out(tmp_path):
    subjects = Learn2RegTask(_training_task(tmp_path, ["labelsTr/Toy_0004_0000.nii.gz"])).subjects()

    assert [Path(subject["image"]).name[4:13] for subject in subjects] == [
        "0003_0000",
        "0004_0000",
        "0005_0000",
        "0005_0001",
    ]
    assert [sorted(subject) for subject in subjects] == [["image"], ["image", "label"], ["image"], ["image"]]


def test_random_pairs_follow_the_seed_and_their_direction_is_random(tmp_path):
    task = Learn2RegTask(_make(tmp_path, training=[_image(case) for case in range(20)]))

    def names(**arguments):
        return [pair["pair"] for pair in task.pairs("training", **arguments)]

    assert names(number=30) == names(number=30)
    assert names(number=30) != names(number=30, seed=1)
    assert len(names()) == 20
    every = task.pairs("training", number=190)
    assert len({frozenset(_cases(pair)) for pair in every}) == 190
    upwards = sum(fixed < moving for fixed, moving in map(_cases, every))
    assert 60 < upwards < 130  # five standard deviations around 95


def test_number_takes_the_first_pairs_of_an_explicit_split(tmp_path):
    task = Learn2RegTask(_make(tmp_path, registration_val=[_pair((1,), (2,)), _pair((3,), (4,))]))

    assert [_cases(pair) for pair in task.pairs(number=1)] == [["0001", "0002"]]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        task.pairs(number=0)


def test_label_maps_can_stand_in_for_images_that_are_not_there(tmp_path):
    labels = [f"labelsTr/Toy_{case:04d}_0000.nii.gz" for case in (1, 2)]
    task = _make(tmp_path, labels, registration_val=[_pair((1,), (2,))])
    for case in (1, 2):
        (task / _image(case)).unlink()

    (pair,) = Learn2RegTask(task, image_from="label").pairs()

    assert pair["pair"] == "Toy_0001_0000__Toy_0002_0000"
    assert _relative(pair, tmp_path)["fixed"] == _relative(pair, tmp_path)["fixed_label"] == labels[0]
    assert _relative(pair, tmp_path)["moving"] == _relative(pair, tmp_path)["moving_label"] == labels[1]
    with pytest.raises(FileNotFoundError, match="image_from='label'"):
        Learn2RegTask(task).pairs()


def test_files_that_do_not_exist_are_counted_and_the_first_are_named(tmp_path):
    pairs = [_pair((1,), (2,)), _pair((1,), (3,)), _pair((4,), (5,))]
    named = {"image": _image(2), "label": "./labelsTr/Toy_0002_0000.nii.gz"}
    task = Learn2RegTask(_make(tmp_path, training=[named], registration_val=pairs))
    (tmp_path / _image(1)).unlink()

    with pytest.raises(FileNotFoundError, match=r"2 of the 3 items of 'registration_val'.*2 in all") as caught:
        task.pairs()

    assert "imagesTr/Toy_0001_0000.nii.gz" in str(caught.value)
    assert "labelsTr/Toy_0002_0000.nii.gz" in str(caught.value)


def test_incomplete_pairs_can_be_left_to_their_loading_unless_none_is_complete(tmp_path, caplog):
    task = Learn2RegTask(_make(tmp_path, registration_val=[_pair((1,), (2,)), _pair((3,), (4,))]))
    (tmp_path / _image(1)).unlink()

    with caplog.at_level(logging.WARNING):
        pairs = task.pairs(on_missing="keep")

    assert len(pairs) == 2
    assert "1 of the 2 items" in caplog.text
    (tmp_path / _image(3)).unlink()
    with pytest.raises(FileNotFoundError, match="2 of the 2 items"):
        task.pairs(on_missing="keep")
    with pytest.raises(ValueError, match="on_missing"):
        task.pairs(on_missing="ignore")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"registration_test": [], "labels": {}}, r"lacks the key 'registration_val'; it has \['labels', 'name', 'reg"),
        (
            {"registration_val": [], "training": ["./imagesTr/a.nii.gz"]},
            r"with entries; the filled lists are \{'training': 1\}",
        ),
        ({"registration_val": {"fixed": "a"}}, "must be a list"),
        (
            {"registration_val": [_pair((1,), (2,)), {"fixed": "./imagesTr/x.nii.gz"}]},
            r"registration_val\[1\] .* fixed and moving, got",
        ),
        ({"registration_val": ["./imagesTr/x.nii.gz"]}, r"registration_val\[0\] .* fixed and moving"),
        ({"registration_val": [{"fixed": "./imagesTr/x.nii.gz", "moving": 3}]}, r"registration_val\[0\]"),
    ],
)
def test_a_split_that_is_absent_empty_or_malformed_is_explained(tmp_path, content, message):
    task = Learn2RegTask(_make(tmp_path, **content))

    with pytest.raises(ValueError, match=message):
        task.pairs()


def test_training_entries_without_an_image_and_training_without_cases_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"training\[0\] .* needs a path for image, got \{'label': 'a'\}"):
        Learn2RegTask(_make(tmp_path, training=[{"label": "a"}])).pairs("training")
    with pytest.raises(ValueError, match="leaves no two cases"):
        Learn2RegTask(_make(tmp_path, training=[_image(1), _image(1, 1)])).pairs("training")
    with pytest.raises(ValueError, match="leaves no two cases"):
        Learn2RegTask(_make(tmp_path, training=[_image(1)], registration_val=[_pair((1,), (2,))])).subjects()
    with pytest.raises(ValueError, match=r"split must be one of .* got 'validation'"):
        Learn2RegTask(tmp_path).pairs("validation")


def test_a_task_is_found_by_its_folder_or_its_json_and_other_places_are_explained(tmp_path):
    task = _make(tmp_path / "Toy", registration_val=[_pair((1,), (2,))])

    assert Learn2RegTask(task).pairs() == Learn2RegTask(str(task / "Toy_dataset.json")).pairs()
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        Learn2RegTask(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no <Task>_dataset\.json"):
        Learn2RegTask(tmp_path)
    (task / "Other_dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several tasks \(Other_dataset\.json, Toy_dataset\.json\)"):
        Learn2RegTask(task)


@pytest.mark.parametrize(
    ("text", "message"), [(b"{'a': 1}", "is not JSON"), (b"\xff\xfe\x00", "is not JSON"), (b"[1]", "got a list")]
)
def test_a_file_that_is_no_json_object_is_explained(tmp_path, text, message):
    (tmp_path / "Toy_dataset.json").write_bytes(text)

    with pytest.raises(ValueError, match=rf"Toy_dataset\.json.*{message}"):
        Learn2RegTask(tmp_path)


def test_unknown_image_sources_and_kinds_of_points_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image_from must be 'image' or 'label', got 'mask'"):
        Learn2RegTask(tmp_path, image_from="mask")
    with pytest.raises(ValueError, match="point_kinds must be among"):
        Learn2RegTask(tmp_path, point_kinds=["vertices"])


def test_a_dataset_loads_the_pairs_of_its_split_and_records_the_one_that_misses_a_file(tmp_path):
    task = _make(tmp_path, registration_val=[_pair((1,), (2,)), _pair((3,), (4,))])
    (tmp_path / _image(3)).unlink()

    dataset = Learn2RegDataset(
        task, transform=lambda pair: Path(pair["fixed"]).stat() and pair["pair"], on_error="record"
    )

    assert dataset[0] == "Toy_0001_0000__Toy_0002_0000"
    assert dataset[1]["pair"] == "Toy_0003_0000__Toy_0004_0000"
    assert "No such file" in dataset[1]["error"]
    with pytest.raises(FileNotFoundError, match="1 of the 2 items"):
        Learn2RegDataset(task)


@pytest.mark.parametrize(
    ("name", "image_from", "count"),
    [("HippocampusMR", "image", 30), ("LPBA40", "image", 19), ("AbdomenMR", "image", 20), ("AbdomenCTCT", "label", 45)],
)
def test_real_tasks_give_their_official_pairs_with_both_label_maps(data_dir, name, image_from, count):
    task = Learn2RegTask(data_dir / name, image_from)

    pairs = task.pairs()
    training = task.pairs("training", number=40)

    assert len({pair["pair"] for pair in pairs}) == count
    assert all({"fixed_label", "moving_label"} <= pair.keys() for pair in pairs + training)
    validation_cases = {case for pair in pairs for case in _cases(pair)}
    assert validation_cases.isdisjoint(case for pair in training for case in _cases(pair))


def test_the_real_task_without_images_says_how_its_label_maps_can_be_registered(data_dir):
    with pytest.raises(FileNotFoundError, match=r"45 of the 45 items .* image_from='label'"):
        Learn2RegTask(data_dir / "AbdomenCTCT").pairs(on_missing="keep")
