# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_reg_ext.apps import training_labels, training_subjects, with_predictions

LIVER = {"1": "liver"}


def image(case, modality=0):
    return f"./imagesTr/Toy_{case:04d}_{modality:04d}.nii.gz"


def pair(fixed, moving):
    return {"fixed": image(fixed), "moving": image(moving)}


def make(folder, cases=(1, 2, 3), unlabelled=(), labels=None, **content):
    """A task with an image and, but for the unlabelled, a label map of every case."""
    training = [{"image": case if isinstance(case, str) else image(case)} for case in cases]
    for entry in training:
        path = folder / entry["image"]
        for file in (path, folder / "labelsTr" / path.name):
            file.parent.mkdir(exist_ok=True)
            file.touch()
    for case in unlabelled:
        (folder / image(case).replace("images", "labels")).unlink()
    content = {"name": "Toy", "training": training, **({} if labels is None else {"labels": labels}), **content}
    (folder / "Toy_dataset.json").write_text(json.dumps(content))
    return folder


def refusal(call, *args) -> str:
    """The one line that a call ends the process with, and nothing behind it."""
    with pytest.raises(SystemExit) as caught:
        call(*args)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert caught.value.code.startswith("error: ")
    assert len(caught.value.code.splitlines()) == 1
    return caught.value.code


def names(subjects, key="image"):
    return [Path(subject[key]).name for subject in subjects]


def test_every_training_image_comes_with_its_label_map_and_mask(tmp_path):
    make(tmp_path)
    (tmp_path / "masksTr").mkdir()
    (tmp_path / "masksTr" / "Toy_0002_0000.nii.gz").touch()

    subjects = training_subjects(tmp_path)

    assert names(subjects) == [f"Toy_000{n}_0000.nii.gz" for n in (1, 2, 3)]
    assert [sorted(subject) for subject in subjects] == [
        ["image", "label"],
        ["image", "label", "mask"],
        ["image", "label"],
    ]
    assert all(Path(subject["label"]).parent.name == "labelsTr" for subject in subjects)
    assert names(subjects, "label") == names(subjects)


@pytest.mark.parametrize("split", ["registration_val", "registration_test"])
def test_cases_of_validation_and_test_are_never_trained_on_though_training_lists_them(tmp_path, split):
    make(tmp_path, cases=(1, 2, 3, 4, 5), **{split: [pair(2, 4)]})

    assert names(training_subjects(tmp_path)) == [f"Toy_000{n}_0000.nii.gz" for n in (1, 3, 5)]


def test_neither_are_they_in_another_modality(tmp_path):
    make(tmp_path, cases=(1, image(2, 1), 3), registration_val=[pair(2, 7)])

    assert names(training_subjects(tmp_path)) == ["Toy_0001_0000.nii.gz", "Toy_0003_0000.nii.gz"]


@pytest.mark.parametrize("unlabelled", [(2,), (1, 2, 3)])
def test_images_without_label_maps_are_counted_and_one_is_named(tmp_path, unlabelled):
    line = refusal(training_subjects, make(tmp_path, unlabelled=unlabelled))

    assert "Toy_dataset.json: training needs a label map for every image" in line
    assert f"{len(unlabelled)} of 3 have none, e.g. {tmp_path / image(unlabelled[0])}." in line


def test_a_validation_case_needs_no_label_map(tmp_path):
    make(tmp_path, unlabelled=(3,), registration_val=[pair(3, 9)])

    assert names(training_subjects(tmp_path)) == ["Toy_0001_0000.nii.gz", "Toy_0002_0000.nii.gz"]


def test_one_training_case_is_too_few(tmp_path):
    assert "Toy_dataset.json: training needs 2 cases at least, got 1." in refusal(
        training_subjects, make(tmp_path, (1,))
    )


def test_two_modalities_of_one_patient_are_one_case(tmp_path):
    make(tmp_path, cases=(1, image(1, 1)))

    assert "needs 2 cases at least, got 1." in refusal(training_subjects, tmp_path)
    assert len(training_subjects(tmp_path, 1)) == 2


def test_as_many_cases_as_asked_for_are_enough(tmp_path):
    make(tmp_path)

    assert len(training_subjects(tmp_path, 3)) == 3
    assert "needs 4 cases at least, got 3." in refusal(training_subjects, tmp_path, 4)


def test_a_task_of_validation_cases_only_is_refused(tmp_path):
    make(tmp_path, cases=(1, 2), registration_val=[pair(1, 2)])

    assert str(tmp_path) in refusal(training_subjects, tmp_path)


@pytest.mark.parametrize("training", [[], None, [{"label": "x"}], [image(9)]])
def test_a_training_list_that_is_empty_malformed_or_of_missing_files_is_refused(tmp_path, training):
    assert str(tmp_path) in refusal(training_subjects, make(tmp_path, training=training))


@pytest.mark.parametrize("call", [training_subjects, training_labels])
def test_a_folder_that_is_none_is_refused(tmp_path, call):
    assert str(tmp_path / "nowhere") in refusal(call, tmp_path / "nowhere")
    assert str(tmp_path) in refusal(call, tmp_path)
    assert "--dataset_dir" in refusal(call, "")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
def test_predictions_have_the_names_of_the_images_or_these_as_nifti(tmp_path, suffix):
    subjects = [{"image": f"scans/{case}{suffix}", "label": f"truth/{case}"} for case in ("A.1", "B")]
    for name in ("A.1.nii.gz", f"B{suffix}"):
        (tmp_path / name).touch()

    found = with_predictions(subjects, tmp_path)

    assert found == [
        {**subjects[0], "prediction": str(tmp_path / "A.1.nii.gz")},
        {**subjects[1], "prediction": str(tmp_path / f"B{suffix}")},
    ]
    assert "prediction" not in subjects[0]


def test_a_prediction_in_the_format_of_the_image_goes_first(tmp_path):
    for name in ("A.nii.gz", "A.mha"):
        (tmp_path / name).touch()

    assert names(with_predictions([{"image": "A.mha"}], tmp_path), "prediction") == ["A.mha"]


def test_predictions_in_the_home_directory_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "A.nii.gz").touch()

    assert with_predictions([{"image": "A.nii.gz"}], "~") == [
        {"image": "A.nii.gz", "prediction": str(tmp_path / "A.nii.gz")}
    ]


@pytest.mark.parametrize("there", [[], ["A_seg.nii.gz", "c.nii.gz", "B.nii.gz"]])
def test_predictions_that_are_missing_or_have_another_name_are_counted_and_one_is_named(tmp_path, there):
    for name in there:
        (tmp_path / name).touch()
    subjects = [{"image": f"scans/{case}.nii.gz"} for case in "ABC"]

    line = refusal(with_predictions, subjects, tmp_path)

    assert f"{2 if there else 3} of 3 predicted label maps are missing, e.g. {tmp_path / 'A.nii.gz'}." in line


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": {"2": "spleen", "1": "liver", "182": "x"}}, [0, 1, 2, 182]),
        ({"0": {"0": "background", "1": "liver"}, "1": {"3": "kidney"}}, [0, 1, 3]),
        ({"0": LIVER, "1": {}}, [0, 1]),
        ({"0": "background", "10": "x", "2": "y"}, [0, 2, 10]),
        ({"614454277": "x"}, [0, 614454277]),
    ],
)
def test_the_classes_are_those_of_all_modalities_background_first(tmp_path, labels, expected):
    assert training_labels(make(tmp_path, labels=labels)) == expected


def test_ignored_classes_are_left_out_and_the_background_never(tmp_path):
    make(tmp_path, labels={"0": {"1": "a", "2": "b", "3": "c"}})

    assert training_labels(tmp_path, ignored=[2, 9]) == [0, 1, 3]
    assert training_labels(tmp_path, ignored=[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "it names no labels"),
        ({}, "it names no labels"),
        ({"0": {}}, "it names no labels"),
        ({"0": "background"}, "it names no labels"),
        (["liver", "spleen"], "it names no labels"),
        ("liver", "it names no labels"),
        ({"liver": 1, "spleen": 2}, "whole numbers as keys, got 'liver'"),
        ({"0": {"1": "liver", "spleen": 2}}, "whole numbers as keys, got 'spleen'"),
        ({"1": {"name": "liver"}}, "whole numbers as keys, got 'name'"),
        ({"0": {"1.5": "x"}}, "whole numbers as keys, got '1.5'"),
        ({"-1": "x"}, "whole numbers as keys, got '-1'"),
        ({"\u00b2": "x"}, "whole numbers as keys, got '\u00b2'"),  # a digit, but no number
        ({"0": LIVER, "2": "spleen"}, "sorted by modality, but not all of them"),
    ],
)
def test_labels_that_are_absent_or_malformed_are_refused_with_what_to_do(tmp_path, labels, message):
    line = refusal(training_labels, make(tmp_path, labels=labels))

    assert line.startswith(f"error: {tmp_path / 'Toy_dataset.json'}: ")
    assert message in line
    assert '"labels": {"0": {"1": "liver"}}, or give the classes, background first: --labels "[0,1]".' in line


def test_ignoring_all_classes_leaves_nothing_to_learn(tmp_path):
    assert "names no labels but those ignored" in refusal(training_labels, make(tmp_path, labels={"0": LIVER}), [1])
