# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from monai_reg_ext.transforms import (
    LabelsToChannels,
    LabelsToChannelsD,
    LabelsToChannelsd,
    LabelsToChannelsDict,
)

AFFINE = torch.tensor([[0.0, 2, 0, 5], [-1, 0, 0, 7], [0, 0, 3, 9], [0, 0, 0, 1]], dtype=torch.float64)


def label_map(values, dtype=torch.float32, name="cases/one.nii.gz"):
    """A label map of 2 x 3 x 4 voxels that holds the values in turn, as ``LoadImage`` gives it."""
    voxels = torch.tensor(values).repeat(24)[:24].view(1, 2, 3, 4).to(dtype)
    return MetaTensor(voxels, affine=AFFINE, meta={ImageMetaKey.FILENAME_OR_OBJ: name})


def voxel_by_voxel(label, labels, ignored=()):
    """The slow twin."""
    channels = [0 if value in ignored else labels.index(value) for value in label.flatten().tolist()]
    return torch.tensor(channels, dtype=torch.int32).view(label.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int16, torch.int64])
def test_every_voxel_gets_the_place_of_its_class_among_the_labels(dtype):
    label = label_map([0, 7, 3, 3, 200, 0, 7], dtype)
    before = label.clone()

    channels = LabelsToChannels((0, 200, 3, 5, 7))(label)

    assert channels.dtype == torch.int32
    assert torch.equal(channels.as_tensor(), voxel_by_voxel(label, (0, 200, 3, 5, 7)))
    assert torch.equal(label, before)


def test_classes_may_have_any_number():
    # ids of brain atlases have nine digits
    label = label_map([614454277, 0, 300, -5, 614454276], torch.int32)

    channels = LabelsToChannels((0, 614454276, -5, 614454277, 300))(label)

    assert channels.flatten()[:5].tolist() == [3, 0, 4, 2, 1]


def test_runs_and_noise_give_what_a_look_at_every_voxel_gives():
    classes = (0, *range(21, 77))
    noise = torch.tensor(classes)[torch.randint(0, 57, (1, 6, 11, 9))]
    blocks = noise[:, :3].repeat_interleave(4, 3)

    for label in (noise, blocks, blocks.movedim(3, 1)):
        assert torch.equal(LabelsToChannels(classes)(label), voxel_by_voxel(label, classes))


def test_ignored_classes_become_background_whatever_number_that_has():
    label = label_map([9, 1, 4, 2, 6])

    channels = LabelsToChannels((9, 2, 1), ignored=(4, 6, 8))(label)

    assert channels.flatten()[:5].tolist() == [0, 2, 0, 1, 0]


def test_the_file_and_the_place_in_space_stay_known():
    channels = LabelsToChannels((0, 1))(label_map([0, 1]))

    assert isinstance(channels, MetaTensor)
    assert channels.meta[ImageMetaKey.FILENAME_OR_OBJ] == "cases/one.nii.gz"
    torch.testing.assert_close(channels.affine, AFFINE)


def test_a_plain_tensor_stays_one():
    assert type(LabelsToChannels((0, 1))(torch.ones(1, 2, 3, 4))) is torch.Tensor


@pytest.mark.parametrize("wrong", [0.5, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("others", [[0.0, 1.0], [2.0]])
def test_values_that_are_not_whole_are_refused_with_the_file(wrong, others):
    with pytest.raises(ValueError, match=rf"^label map cases/one.nii.gz needs whole .* e.g. {wrong:g}\. ") as caught:
        LabelsToChannels((0, 1, 2))(label_map([*others, wrong, wrong]))

    assert len(str(caught.value)) < 200


def test_a_class_without_a_channel_is_refused_with_the_file():
    with pytest.raises(
        ValueError,
        match=r"^label map cases/one.nii.gz holds the classes \[3, 300\], the network has channels for \[0, 1, 2\]\. ",
    ):
        LabelsToChannels((0, 1, 2), ignored=(7,))(label_map([300, 0, 1, 7, 3]))


def test_a_label_map_of_no_file_is_refused_too():
    with pytest.raises(ValueError, match=r"^a label map holds the classes \[1\]"):
        LabelsToChannels((0,))(torch.ones(1, 2, 3, 4))


def test_a_class_missing_from_a_case_is_told_once_with_the_file(caplog):
    LabelsToChannels((9, 2, 5, 1), ignored=(4,), warn=True)(label_map([1]))

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    # the background, 9, need not be there
    assert record.getMessage() == (
        "label map cases/one.nii.gz has no voxel of the classes [2, 5]: nothing to learn there."
    )


@pytest.mark.parametrize(("warn", "values"), [(True, [1, 2]), (False, [1])])
def test_nothing_is_told_when_all_classes_are_there_or_nobody_asked(warn, values, caplog):
    LabelsToChannels((0, 1, 2), warn=warn)(label_map(values))

    assert not caplog.records


@pytest.mark.parametrize(("labels", "ignored"), [((), ()), ((0, 1, 2, 1), ()), ((0, 1, 2), (3, 2))])
def test_labels_that_contradict_each_other_are_refused(labels, ignored):
    with pytest.raises(ValueError, match=r"each class once, background first, and none that is ignored; got \["):
        LabelsToChannels(labels, ignored)


def test_ignoring_the_background_changes_nothing():
    label = label_map([0, 1, 2])

    assert torch.equal(LabelsToChannels((0, 2, 1), ignored=(0,))(label), LabelsToChannels((0, 2, 1))(label))


def test_the_dictionary_version_converts_its_keys_only(caplog):
    data = {"label": label_map([0, 4]), "prediction": label_map([5, 4]), "image": label_map([0.5])}
    options = {"labels": (0, 4, 3), "ignored": (5,), "warn": True}

    out = LabelsToChannelsd(["label", "prediction"], **options)(data)

    for key in ("label", "prediction"):
        assert torch.equal(out[key], LabelsToChannels((0, 4), ignored=(5,))(data[key]))
    assert [record.getMessage().count("[3]") for record in caplog.records] == [1, 1]
    assert out["image"] is data["image"]
    assert data["label"].flatten()[1] == 4
    assert LabelsToChannelsD is LabelsToChannelsDict is LabelsToChannelsd


def test_keys_may_be_absent_where_that_is_allowed():
    assert LabelsToChannelsd("label", (0, 1), allow_missing_keys=True)({}) == {}
    with pytest.raises(KeyError, match="label"):
        LabelsToChannelsd("label", (0, 1))({})
