# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.apps.label.datastore_files import NotInDatastoreError, atlas_ids, image_file, moving_files


def test_atlases_are_named_with_commas_or_as_a_list():
    assert atlas_ids(" a, b,,c ") == atlas_ids(["a", "b", "c"]) == ["a", "b", "c"]
    assert atlas_ids("") == atlas_ids(None) == []


def test_moving_images_come_with_their_labels(datastore, studies):
    subjects = moving_files(datastore, {"moving": "case_2,case_5", "moving_tag": "final"}, needs_labels=False)

    assert subjects == [
        {
            "id": "case_2",
            "image": str(studies / "case_2.nii.gz"),
            "label": str(studies / "labels" / "final" / "case_2.nii.gz"),
        },
        {"id": "case_5", "image": str(studies / "case_5.nii.gz")},
    ]


def test_an_id_that_is_not_there_is_told_with_some_that_are(datastore):
    with pytest.raises(NotInDatastoreError, match=r"no fixed image 'case_9' .* like case_1, case_2"):
        image_file(datastore, "case_9", "fixed")
    with pytest.raises(NotInDatastoreError, match=r"no moving image .* like case_1"):
        moving_files(datastore, {"moving": "../case_1"}, needs_labels=False)


def test_a_missing_label_is_told_with_its_tag(datastore):
    with pytest.raises(NotInDatastoreError, match=r"'case_5' has no label with the tag 'final'"):
        moving_files(datastore, {"moving": "case_5"}, needs_labels=True)
    with pytest.raises(NotInDatastoreError, match=r"'case_1' has no label with the tag 'draft'"):
        moving_files(datastore, {"moving": "case_1", "moving_tag": "draft"}, needs_labels=True)


def test_a_request_without_a_moving_image_says_how_to_name_one(datastore):
    with pytest.raises(ValueError, match=r"parameter 'moving', or start the server with --conf atlas"):
        moving_files(datastore, {"moving": ""}, needs_labels=True)
