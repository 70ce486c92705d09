# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d, gaussian_filter

from monai_reg_ext.networks.layers import foerstner_distinctiveness

SIZES = [(17, 22), (11, 16, 13)]


def _positions(size):
    return torch.stack(torch.meshgrid(*[torch.arange(float(extent)) for extent in size], indexing="ij"))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_one_over_the_trace_of_the_inverse_structure_tensor(size):
    spacing = (0.7, 2.0, 1.5)[: len(size)]
    image = gaussian_filter(np.random.default_rng(0).normal(size=(2, *size)), (0, *[1.0] * len(size)))

    result = foerstner_distinctiveness(torch.from_numpy(image)[:, None], 1.4, spacing)

    stencil = np.array([1, -8, 0, 8, -1]) / 12
    for item, found in zip(image, result[:, 0].numpy(), strict=True):
        slopes = [correlate1d(item, stencil, axis, mode="nearest") / step for axis, step in enumerate(spacing)]
        products = np.array([[a * b for a in slopes] for b in slopes])
        smooth = gaussian_filter(products, (0, 0, *[1.4] * len(size)), mode="nearest", radius=3)
        tensor = np.moveaxis(smooth, (0, 1), (-2, -1))
        np.testing.assert_allclose(found, 1 / np.trace(np.linalg.inv(tensor), axis1=-2, axis2=-1), rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_blob_is_most_distinct_at_its_centre(size):
    centre = torch.tensor([8.0, 12.0] if len(size) == 2 else [5.0, 9.0, 6.0]).view(-1, *[1] * len(size))
    blob = (-(_positions(size) - centre).square().sum(0) / 4).exp()

    distinct = foerstner_distinctiveness(blob[None, None])[0, 0]

    assert torch.equal(torch.stack(torch.unravel_index(distinct.argmax(), size)).float(), centre.flatten())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("oblique", [False, True])
def test_an_edge_is_not_distinct(size, oblique):
    normal = torch.tensor([1.0, 0.6 * oblique, -0.3 * oblique])[: len(size)]
    edge = 1000 * torch.tanh(torch.tensordot(normal, _positions(size), 1) / 3 - 2)

    distinct = foerstner_distinctiveness(edge[None, None])[0, 0]

    assert distinct[(slice(5, -5),) * len(size)].max() < 1e-4 * 50**2  # slopes of some hundreds there
    assert foerstner_distinctiveness(edge[None, None] + 10 * torch.randn(1, 1, *size)).max() > 10


@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_it_grows_with_the_square_of_the_contrast_whatever_its_scale(factor):
    image = torch.randn(1, 1, 9, 8, 10)

    torch.testing.assert_close(
        foerstner_distinctiveness(factor * image), factor**2 * foerstner_distinctiveness(image), rtol=1e-3, atol=0
    )


def test_a_constant_image_has_no_distinct_place():
    assert not foerstner_distinctiveness(torch.full((2, 1, 6, 7, 8), -1000.0)).any()


def test_it_moves_with_the_image():
    image = torch.randn(1, 1, 20, 24, 22)

    there = foerstner_distinctiveness(image.roll((3, -2, 4), (2, 3, 4)))
    here = foerstner_distinctiveness(image).roll((3, -2, 4), (2, 3, 4))

    inside = (..., *[slice(9, -9)] * 3)
    torch.testing.assert_close(there[inside], here[inside])


def test_the_tensors_of_channels_are_added():
    # each channel alone is an edge, together they make corners
    rows, columns = _positions((12, 15))
    channels = torch.stack([rows, columns])[None]

    assert not foerstner_distinctiveness(channels[:, :1]).any()
    # slope 1 along both axes: the tensor is the identity, the trace of its inverse 2
    torch.testing.assert_close(foerstner_distinctiveness(channels)[0, 0, 5:-5, 5:-5], torch.full((2, 5), 0.5))


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_right(size):
    image = torch.randn(1, 1, *[4] * len(size), dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x: foerstner_distinctiveness(x, 0.6), image)


def test_half_precision_is_computed_in_float32():
    image = torch.randn(1, 1, 8, 9, 7)

    result = foerstner_distinctiveness(image.half())

    assert result.dtype == torch.float32
    torch.testing.assert_close(result, foerstner_distinctiveness(image.half().float()))


@pytest.mark.parametrize(("size", "spacing"), [((5,), None), ((5, 6, 7), (1.0, 2.0)), ((5, 6), (1.0, 0.0))])
def test_what_is_not_an_image_with_a_spacing_is_refused(size, spacing):
    with pytest.raises(ValueError, match=r"two or three axes and a spacing > 0 for each, got shape \(1, 1, 5"):
        foerstner_distinctiveness(torch.zeros(1, 1, *size), spacing=spacing)
