# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.transforms import DrawInitialFieldd

SIZE = (14, 20, 11)


def item(number: int = 60) -> dict[str, torch.Tensor]:
    """Keypoints that shear, a tenth of them unknown."""
    fixed = torch.rand(number, 3) * (torch.tensor(SIZE) - 1)
    keypoints = torch.stack([fixed + 0.2 * fixed.roll(1, 1), fixed])
    keypoints[:, ::10] = torch.nan
    return {"keypoints": MetaTensor(keypoints), "fixed_working": MetaTensor(torch.zeros(1, *SIZE)), "pair": "a__b"}


def drawn(modes, data, seed=0) -> torch.Tensor:
    return DrawInitialFieldd(modes, spacing=1).set_random_state(seed)(data)["initial_ddf"]


def test_the_whole_truth_leads_fixed_to_moving_keypoints():
    data = item()

    field = drawn([(0, 1, 0, 1e-6)], data)

    assert field.shape == (3, *SIZE)
    known = data["keypoints"].as_tensor().isfinite().all(2).all(0)
    moving, fixed = data["keypoints"].as_tensor()[:, known]
    torch.testing.assert_close(sample_points(field[None], fixed[None])[0], moving - fixed, atol=0.05, rtol=0)


def test_no_first_method_predicts_anything():
    assert not drawn([(1, 0)], item()).any()


def test_the_same_state_draws_the_same_field_and_another_one_another():
    data, noisy = item(), [(0, 0.5, 0.2, 1.0)]

    first, again, other = (drawn(noisy, data, seed) for seed in (3, 3, 4))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_item_keeps_what_it_holds():
    data = item()

    out = DrawInitialFieldd([(0, 0)])(data)

    assert out.keys() - data.keys() == {"initial_ddf"}
    assert all(out[key] is data[key] for key in data)


def test_without_modes_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one mode"):
        DrawInitialFieldd([])
