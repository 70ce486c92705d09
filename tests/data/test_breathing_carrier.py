# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.data import BreathingCarrier, LungMotion
from monai_reg_ext.data.lung_motion import NODES
from monai_reg_ext.transforms import mm_to_voxel, voxel_to_mm


def _motion(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LungMotion(0.25 * torch.randn(3, *NODES, generator=generator, dtype=torch.float64))


def _turned(volume):
    """The same volume, its axes swapped and two of them flipped."""
    to_old = torch.zeros(4, 4, dtype=torch.float64)
    last = torch.tensor(volume.shape[1:]).double() - 1
    # new axes 0, 1, 2 are old 2, 0, 1; the first two run backwards
    to_old[2, 0], to_old[2, 3] = -1, last[2]
    to_old[0, 1], to_old[0, 3] = -1, last[0]
    to_old[1, 2], to_old[3, 3] = 1, 1
    values = volume.as_tensor().permute(0, 3, 1, 2).flip((1, 2))
    return MetaTensor(values.contiguous(), affine=volume.affine @ to_old, meta={"filename_or_obj": "turned.nii"})


def test_the_field_is_what_happens_to_the_voxels(carrier):
    voxels = torch.cartesian_prod(*[torch.arange(extent).double() for extent in carrier.size])

    ddf = carrier.ddf(_motion())

    torch.testing.assert_close(voxels + ddf.flatten(1).T, carrier.moved(voxels, _motion()))


def test_how_the_axes_lie_in_the_array_does_not_change_the_motion_of_the_body(lung_scan):
    carrier, turned = BreathingCarrier(*lung_scan), BreathingCarrier(*[_turned(volume) for volume in lung_scan])
    points_mm = voxel_to_mm(torch.rand(40, 3) * (torch.tensor(carrier.size) - 1), carrier.affine)

    moved, moved_turned = (
        voxel_to_mm(scan.moved(mm_to_voxel(points_mm, scan.affine), _motion()), scan.affine)
        for scan in (carrier, turned)
    )

    assert (moved - points_mm).norm(dim=1).mean() > 1
    torch.testing.assert_close(moved_turned, moved)
    assert turned.ddf(_motion()).shape == (3, *turned.size)
    ddf = turned.ddf(_motion())[:, 4, 7, 9]
    expected = turned.moved(torch.tensor([[4.0, 7, 9]]), _motion())[0]
    torch.testing.assert_close(ddf + torch.tensor([4.0, 7, 9]).double(), expected)


def test_a_scaling_ends_at_the_lungs_of_the_scan(carrier, linear_patient):
    motion = LungMotion.fit(linear_patient(torch.diag(torch.tensor([0.1, -0.2, 0.4])), (0.0, 0.1, -0.3)))

    centre, half = carrier.frame(motion)
    ends = carrier.moved(torch.stack([centre - half, centre + half]), motion)

    expected = torch.stack([carrier.centre - carrier.half, carrier.centre + carrier.half])
    torch.testing.assert_close(ends, expected, atol=1e-2, rtol=0)
    assert half[2] < carrier.half[2]  # lungs that grow were smaller


def test_lungs_are_the_labels_named_and_their_box_may_be_given(lung_scan):
    image, mask = lung_scan
    labels = MetaTensor(torch.where(mask.as_tensor() > 0, 4, 9), affine=mask.affine)

    carrier = BreathingCarrier(image, labels, lung_labels=[3, 4], lung_box=((2, 10), (-4, 8), (6, 40)))

    assert torch.equal(carrier.mask, mask.as_tensor() > 0)
    assert carrier.centre.tolist() == [6, 2, 23]
    assert carrier.half.tolist() == [4, 6, 17]


def test_a_mask_without_lung_or_on_another_grid_is_refused(lung_scan):
    image, mask = lung_scan
    with pytest.raises(ValueError, match=r"scan: the mask holds no lung \(labels \[7\]\)"):
        BreathingCarrier(image, mask, lung_labels=[7])
    with pytest.raises(ValueError, match="mask: has"):
        BreathingCarrier(image, mask[:, 1:])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii"):
        BreathingCarrier("nowhere.nii", mask)
