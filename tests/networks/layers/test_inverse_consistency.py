# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.inverse_consistency import make_inverse_consistent
from monai_reg_ext.networks.layers.invert_ddf import invert_ddf

SIZE = (9, 12, 10)


def slow_round(forward, backward, compat):
    """One simultaneous update in numpy."""
    size = np.reshape(forward.shape[1:], (3, 1, 1, 1))
    stretch = size / (size - 1) if compat else 1
    mode = "grid-constant" if compat else "nearest"

    def along(field, displacement):
        where = np.indices(field.shape[1:]) + displacement * stretch
        return np.stack([map_coordinates(component, where, order=1, mode=mode) for component in field])

    return (forward - along(backward, forward)) / 2, (backward - along(forward, backward)) / 2


def two_fields(smooth_field, magnitude=2.0):
    return [torch.cat([smooth_field(SIZE, magnitude, seed=seed) for seed in pair]) for pair in ((1, 2), (3, 4))]


def residual(forward, backward):
    """Mean of |a(x) + b(x + a(x))|."""
    return compose_ddf(backward, forward).abs().mean()


@pytest.mark.parametrize("compat", [False, True])
def test_every_round_averages_each_field_with_the_other_one_along_it(smooth_field, compat):
    forward, backward = two_fields(smooth_field)

    result = make_inverse_consistent(forward, backward, 3, compat)

    for item in range(2):
        slow = forward[item].double().numpy(), backward[item].double().numpy()
        for _ in range(3):
            slow = slow_round(*slow, compat)
        np.testing.assert_allclose(result[0][item].numpy(), slow[0], atol=1e-5)
        np.testing.assert_allclose(result[1][item].numpy(), slow[1], atol=1e-5)


def test_fields_come_closer_to_each_others_inverse_with_every_round(smooth_field):
    fields = two_fields(smooth_field)

    residuals = [residual(*make_inverse_consistent(*fields, rounds)) for rounds in (0, 1, 2, 5, 15)]

    assert all(after < before for before, after in pairwise(residuals))
    assert residuals[-1] < residuals[0] / 100


@pytest.mark.parametrize("compat", [False, True])
def test_swapped_fields_give_swapped_results(smooth_field, compat):
    forward, backward = two_fields(smooth_field)

    result = make_inverse_consistent(forward, backward, 5, compat)
    swapped = make_inverse_consistent(backward, forward, 5, compat)

    assert torch.equal(result[0], swapped[1])
    assert torch.equal(result[1], swapped[0])


def test_a_field_and_its_inverse_stay_as_they_are(smooth_field):
    ddf = smooth_field(SIZE, 1.0)
    inverse = invert_ddf(ddf)

    forward, backward = make_inverse_consistent(ddf, inverse, 5)

    # up to what linear interpolation loses
    assert (forward - ddf).abs().mean() < 0.01
    assert (backward - inverse).abs().mean() < 0.01
    assert ddf.abs().mean() > 0.2


def test_opposite_translations_stay_everywhere_while_compat_loses_them_at_the_border():
    shift = torch.tensor([0.2, -0.4, 0.3]).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)

    exact, _ = make_inverse_consistent(shift, -shift)
    reference, _ = make_inverse_consistent(shift, -shift, compat=True)

    torch.testing.assert_close(exact, shift)
    torch.testing.assert_close(reference[..., 4, 6, 5], shift[..., 4, 6, 5], rtol=1e-3, atol=0)
    corner = reference[0, :, -1, 0, -1] / shift[0, :, -1, 0, -1]
    assert (corner < 0.5).all()


def test_without_rounds_nothing_changes(smooth_field):
    fields = two_fields(smooth_field)

    for before, after in zip(fields, make_inverse_consistent(*fields, 0), strict=True):
        assert torch.equal(before, after)


def test_golden_consistent_fields(golden_convex):
    golden = golden_convex

    result = make_inverse_consistent(golden["displacement_fwd"], golden["displacement_bwd"], 15, compat=True)

    torch.testing.assert_close(result[0], golden["consistent_fwd"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result[1], golden["consistent_bwd"], rtol=0, atol=1e-5)
