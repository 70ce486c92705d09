# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.apps.write_volume import VOLUME_SUFFIXES, write_volume
from monai_reg_ext.transforms.read_volume import read_volume

ANGLE = 0.3
OBLIQUE = torch.tensor(
    [
        [-2.0 * np.cos(ANGLE), -1.5 * np.sin(ANGLE), 0, 10],
        [-2.0 * np.sin(ANGLE), 1.5 * np.cos(ANGLE), 0, -20],
        [0, 0, 3, 5],
        [0, 0, 0, 1],
    ],
    dtype=torch.float64,
)  # flipped, turned, unequal spacings


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
def test_what_is_written_is_read_again_with_its_place_in_space(tmp_path, suffix):
    volume = MetaTensor(torch.rand(1, 7, 6, 5), affine=OBLIQUE)

    write_volume(volume, tmp_path / "new" / f"scan{suffix}")

    again = read_volume(tmp_path / "new" / f"scan{suffix}", "scan")
    torch.testing.assert_close(again.as_tensor(), volume.as_tensor())
    torch.testing.assert_close(again.affine, OBLIQUE, atol=1e-5, rtol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"scan{suffix}"]


@pytest.mark.parametrize(("highest", "dtype"), [(5, np.uint8), (300, np.uint16)])
def test_labels_take_the_smallest_type(tmp_path, highest, dtype):
    label = torch.zeros(1, 4, 3, 2, dtype=torch.int32)
    label[0, 1, 2, 1] = highest

    write_volume(MetaTensor(label, affine=OBLIQUE), tmp_path / "label.nii.gz")

    image = nib.load(tmp_path / "label.nii.gz")
    assert image.get_data_dtype() == dtype
    assert np.asarray(image.dataobj)[1, 2, 1] == highest


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"scan\.png: the suffix of an image must be one of \.nii\.gz"):
        write_volume(MetaTensor(torch.rand(1, 3, 3, 3)), tmp_path / "new" / "scan.png")

    assert not (tmp_path / "new").exists()
