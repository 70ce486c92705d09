# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flipd, Invertd
from monai.utils import ImageMetaKey

from monai_reg_ext.transforms import (
    ChannelsToLabels,
    ChannelsToLabelsD,
    ChannelsToLabelsd,
    ChannelsToLabelsDict,
    LabelsToChannels,
)

AFFINE = torch.tensor([[0.0, 2, 0, 5], [-1, 0, 0, 7], [0, 0, 3, 9], [0, 0, 0, 1]], dtype=torch.float64)
LABELS = (0, 614454277, 300, 5)


def logits(dtype=torch.float32):
    return torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_voxel_gets_the_class_of_its_largest_channel(dtype):
    channels = logits(dtype)

    labels = ChannelsToLabels(LABELS)(channels)

    expected = [LABELS[voxel.index(max(voxel))] for voxel in channels.flatten(1).T.tolist()]
    assert labels.dtype == torch.int32
    assert torch.equal(labels, torch.tensor(expected, dtype=torch.int32).view(1, 2, 3, 5))


def test_it_is_the_way_back_from_labels_to_channels():
    label = torch.tensor(LABELS)[torch.randint(0, 4, (1, 2, 3, 5))]

    one_hot = torch.nn.functional.one_hot(LabelsToChannels(LABELS)(label)[0].long()).movedim(-1, 0)

    assert torch.equal(ChannelsToLabels(LABELS)(one_hot.float()), label.int())


def test_the_file_and_the_place_in_space_stay_known():
    channels = MetaTensor(logits(), affine=AFFINE, meta={ImageMetaKey.FILENAME_OR_OBJ: "cases/one.nii.gz"})

    labels = ChannelsToLabels(LABELS)(channels)

    assert isinstance(labels, MetaTensor)
    assert labels.meta[ImageMetaKey.FILENAME_OR_OBJ] == "cases/one.nii.gz"
    torch.testing.assert_close(labels.affine, AFFINE)


def test_a_plain_tensor_stays_one():
    assert type(ChannelsToLabels(LABELS)(logits())) is torch.Tensor


@pytest.mark.parametrize("labels", [(0, 1, 2), (0, 1, 2, 3, 4)])
def test_one_label_per_channel_is_needed(labels):
    with pytest.raises(ValueError, match=rf"4 channels for {len(labels)} labels \[0, 1, 2"):
        ChannelsToLabels(labels)(logits())


def test_labels_go_back_through_the_transforms_of_the_image():
    flip = Flipd("image", spatial_axis=1)
    image = flip({"image": MetaTensor(torch.rand(1, 2, 3, 5), affine=AFFINE)})["image"]
    back = Invertd("pred", transform=flip, orig_keys="image", nearest_interp=True)

    labels = ChannelsToLabelsd("pred", LABELS)({"pred": MetaTensor(logits(), affine=image.affine), "image": image})
    found = back(labels)["pred"]

    assert torch.equal(found.as_tensor(), ChannelsToLabels(LABELS)(logits()).flip(2))
    torch.testing.assert_close(found.affine, AFFINE)


def test_the_dictionary_version_converts_its_keys_only():
    data = {"pred": logits(), "image": torch.rand(1, 2, 3, 5)}

    out = ChannelsToLabelsd("pred", LABELS)(data)

    assert torch.equal(out["pred"], ChannelsToLabels(LABELS)(logits()))
    assert out["image"] is data["image"]
    assert torch.equal(data["pred"], logits())
    assert ChannelsToLabelsD is ChannelsToLabelsDict is ChannelsToLabelsd


def test_keys_may_be_absent_where_that_is_allowed():
    assert ChannelsToLabelsd("pred", LABELS, allow_missing_keys=True)({}) == {}
    with pytest.raises(KeyError, match="pred"):
        ChannelsToLabelsd("pred", LABELS)({})
