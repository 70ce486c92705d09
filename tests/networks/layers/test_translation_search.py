# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.translation_search import TranslationSearch


def sides() -> list[tuple[torch.Tensor, torch.Tensor]]:
    sizes = (3, 5, 4), (4, 3, 6)
    return [(torch.rand(1, 2, *size), torch.rand(1, 1, *size) * (torch.rand(1, 1, *size) > 0.3)) for size in sizes]


def one_by_one(fixed, fixed_weight, moving, moving_weight, first, translations):
    energy, overlap = torch.zeros(translations), torch.zeros(translations)
    for number in torch.cartesian_prod(*(torch.arange(extent) for extent in translations)):
        for here in torch.cartesian_prod(*(torch.arange(extent) for extent in fixed.shape[2:])):
            there = here + number + torch.tensor(first)
            if ((there >= 0) & (there < torch.tensor(moving.shape[2:]))).all():
                x, y = (slice(None), slice(None), *here), (slice(None), slice(None), *there)
                weight = (fixed_weight[x] * moving_weight[y]).item()
                overlap[tuple(number)] += weight
                energy[tuple(number)] += weight * (fixed[x] - moving[y]).square().sum()
    return torch.where(overlap > 0, energy / overlap, torch.inf), overlap


def test_all_translations_have_the_energies_that_a_loop_finds():
    (fixed, fixed_weight), (moving, moving_weight) = sides()
    search = TranslationSearch(fixed, fixed_weight, moving.shape[2:])

    energy, overlap = search(moving, moving_weight)

    expected = one_by_one(fixed, fixed_weight, moving, moving_weight, search.first, search.translations)
    assert search.first == [-2, -4, -3]
    assert energy.shape == (6, 7, 9)
    torch.testing.assert_close(energy, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(overlap, expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [(3, -2, 1), (0, 0, 0), (-4, 5, 2)])
def test_a_shifted_copy_has_no_energy_at_its_shift(shift):
    scene = torch.rand(1, 2, 30, 30, 30)

    def cut(start, size):
        return scene[(..., *(slice(a, a + n) for a, n in zip(start, size, strict=True)))]

    fixed, moving = cut((10, 9, 8), (9, 7, 8)), cut([a - s for a, s in zip((10, 9, 8), shift, strict=True)], (10, 9, 9))
    search = TranslationSearch(fixed, torch.ones_like(fixed[:, :1]), moving.shape[2:])

    energy, overlap = search(moving, torch.ones_like(moving[:, :1]))

    energy = torch.where(overlap > 20, energy, torch.inf)
    best = torch.stack(torch.unravel_index(energy.argmin(), energy.shape)) + torch.tensor(search.first)
    assert tuple(best.tolist()) == shift
    assert energy.min() < 1e-4
