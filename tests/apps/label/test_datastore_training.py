# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from monai_reg_ext.apps import training_labels, training_subjects
from monai_reg_ext.apps.label import AppBundle, RegistrationService
from monai_reg_ext.apps.label.datastore_files import moving_files
from monai_reg_ext.apps.label.datastore_training import train_on_subjects, training_options, write_training_task

SHORT = {"epochs": 1, "pairs_per_epoch": 1, "val_interval": 1, "tensorboard": False, "pictures": False}


@pytest.fixture
def subjects(studies) -> list[dict[str, str]]:
    names = [f"case_{number}.nii.gz" for number in (1, 2, 3, 4)]
    return [{"image": str(studies / name), "label": str(studies / "labels" / "final" / name)} for name in names]


def test_the_datastore_becomes_a_task_that_trainings_read(subjects, tmp_path):
    path, labels = write_training_task(subjects, tmp_path / "data")

    found = training_subjects(path, least=4)
    assert [{key: str(Path(value).resolve()) for key, value in subject.items()} for subject in found] == subjects
    assert labels == training_labels(path) == [0, 1, 2, 3, 4, 5]


def test_images_numbered_with_four_digits_are_cases_of_their_own(subjects, tmp_path):
    for number, subject in enumerate(subjects):
        for key in ("image", "label"):
            link = tmp_path / key / f"scan_{number:04d}.nii.gz"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(subject[key])
            subject[key] = str(link)

    path, _ = write_training_task(subjects, tmp_path / "data")

    assert len(training_subjects(path, least=4)) == 4


def test_numbers_and_switches_of_a_training_may_be_set(tmp_path):
    options = training_options(AppBundle("fused_convex", tmp_path))

    assert options["epochs"] == 25
    assert {"learning_rate", "spacing", "ignored", "semantic_options"} <= options.keys()
    assert not {"dataset_dir", "output_dir", "weights", "device", "imports", "train", "loss"} & options.keys()


def test_what_cannot_be_trained_or_set_is_refused_before_anything_is_written(subjects, tmp_path):
    with pytest.raises(ValueError, match="convex_adam has no training that makes weights"):
        train_on_subjects(AppBundle("convex_adam", tmp_path), subjects, tmp_path, {})
    with pytest.raises(ValueError, match="epochs must be a number"):
        train_on_subjects(AppBundle("pdd_net", tmp_path), subjects, tmp_path, {"epochs": "$3"})

    assert list(tmp_path.iterdir()) == []


def test_too_few_images_are_told_and_leave_no_weights(subjects, tmp_path):
    with pytest.raises(ValueError, match=r"training needs 4 cases at least, got 2"):
        train_on_subjects(AppBundle("pdd_net", tmp_path), subjects[:2], tmp_path, {**SHORT, "device": "cpu"})

    assert not AppBundle("pdd_net", tmp_path).weights.is_relative_to(tmp_path)


@pytest.mark.slow
def test_a_bundle_registers_after_its_training(subjects, datastore, tmp_path):
    bundle = AppBundle("pdd_net", tmp_path)

    result = train_on_subjects(bundle, subjects, tmp_path, {**SHORT, "model": "pdd_net", "device": "cpu"})

    assert result == {"weights": str(tmp_path / "model/pdd_net/models/model.pt"), "labels": [0, 1, 2, 3, 4, 5]}
    request = {"image": datastore.get_image_uri("case_1"), "moving": "case_2", "device": "cpu"}
    path, facts = RegistrationService(bundle)(request | {"moving_files": moving_files(datastore, request, True)})
    Path(path).unlink()
    assert facts["moving"]["case_2"]["sdlogj"] > 0
