# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers.signed_distance import signed_distance
from monai_reg_ext.transforms import SignedDistanceMap, SignedDistanceMapd

# axes 1 and 0 swapped, one flipped: the voxels are 1.5 x 2 x 3 mm
AFFINE = torch.tensor([[0.0, -2, 0, 5], [1.5, 0, 0, 7], [0, 0, 3, 9], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture
def label():
    values = torch.zeros(1, 6, 7, 5)
    values[:, 1:4, 2:5, 1:3] = 3
    values[:, 4:, 5:, 2:] = 8
    return MetaTensor(values, affine=AFFINE)


def test_distances_count_voxels_or_mm(label):
    plain = label.as_tensor()[None] > 0

    voxels, mm = SignedDistanceMap(power=1.0)(label), SignedDistanceMap(power=1.0, unit="mm")(label)

    torch.testing.assert_close(voxels.as_tensor(), signed_distance(plain, 1.0)[0])
    torch.testing.assert_close(mm.as_tensor(), signed_distance(plain, 1.0, voxel_size=(1.5, 2, 3))[0])
    assert torch.equal(mm.affine, AFFINE)


def test_labels_have_a_channel_each_also_where_there_are_none(label):
    maps = SignedDistanceMapd("label", labels=[8, 5, 3], scale=2.0)({"label": label, "other": 1})

    assert maps["other"] == 1
    assert maps["label"].shape == (3, 6, 7, 5)
    assert maps["label"][1].abs().max() == 0
    torch.testing.assert_close(
        maps["label"][2].as_tensor(), signed_distance(label.as_tensor()[None] == 3, scale=2.0)[0, 0]
    )


def test_an_empty_label_map_gives_zeros(label):
    assert SignedDistanceMap()(torch.zeros_like(label)).abs().max() == 0


def test_tensors_have_voxels_but_no_mm(label):
    assert not isinstance(SignedDistanceMap()(label.as_tensor()), MetaTensor)
    with pytest.raises(TypeError, match="needs a MetaTensor"):
        SignedDistanceMap(unit="mm")(label.as_tensor())


def test_other_units_are_refused():
    with pytest.raises(ValueError, match="unit must be one of"):
        SignedDistanceMap(unit="cm")


def test_missing_keys_are_an_error_unless_allowed(label):
    with pytest.raises(KeyError):
        SignedDistanceMapd("fixed")({"label": label})
    assert "fixed" not in SignedDistanceMapd("fixed", allow_missing_keys=True)({"label": label})
