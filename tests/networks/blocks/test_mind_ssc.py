# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid

SIZE = (11, 9, 10)
SETTINGS = [(1, 2), (2, 2), (1, 1), (3, 3)]

# where each channel goes when the image is flipped along an axis, or two axes are swapped
FLIPPED = {
    0: [2, 3, 0, 1, 4, 5, 10, 11, 8, 9, 6, 7],
    1: [3, 2, 1, 0, 8, 9, 6, 7, 4, 5, 10, 11],
    2: [0, 1, 2, 3, 9, 8, 11, 10, 5, 4, 7, 6],
}
SWAPPED = {
    (0, 1): [1, 0, 2, 3, 6, 7, 4, 5, 10, 11, 8, 9],
    (0, 2): [9, 8, 4, 5, 2, 3, 6, 7, 1, 0, 11, 10],
    (1, 2): [10, 11, 6, 7, 4, 5, 2, 3, 9, 8, 0, 1],
}


def slow_edges():
    """Adjacent ones among the six neighbours, listed as the reference lists them and brought into its order."""
    neighbours = np.array([(-1, 0, 0), (0, 0, -1), (0, -1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0)])
    pairs = [(a, b) for i, a in enumerate(neighbours) for b in neighbours[:i] if ((a - b) ** 2).sum() == 2]
    return [pairs[channel] for channel in (6, 8, 1, 11, 2, 10, 0, 7, 9, 4, 5, 3)]


def slow_mind(image, radius, dilation):
    """Voxel by voxel in float64; outside, the nearest voxel counts."""

    def at(volume, position):
        return volume[tuple(np.clip(position, 0, np.array(volume.shape) - 1))]

    def at_every_voxel(value):
        return np.reshape([value(np.array(p)) for p in itertools.product(*map(range, image.shape))], image.shape)

    cube = list(itertools.product(range(-radius, radius + 1), repeat=3))
    distances = []
    for a, b in slow_edges():
        squared = at_every_voxel(lambda p, a=a, b=b: (at(image, p + dilation * a) - at(image, p + dilation * b)) ** 2)
        distances.append(at_every_voxel(lambda p, q=squared: np.mean([at(q, p + offset) for offset in cube])))
    distances = np.stack(distances) - np.min(distances, 0)
    variance = distances.mean(0)
    return np.exp(-distances / np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean()))


def whole_descriptors(mind, image):
    """Where gradients are wanted nothing is computed in slabs."""
    return mind(image.clone().requires_grad_()).detach()


@pytest.mark.parametrize("descriptors", [MindSSC.forward, whole_descriptors])
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1), (0, 1)])
def test_every_voxel_follows_the_definition(radius, dilation, descriptors):
    image = torch.randn(1, 1, 4, 3, 5)

    mind = descriptors(MindSSC(radius, dilation), image)

    np.testing.assert_allclose(mind[0], slow_mind(image[0, 0].double().numpy(), radius, dilation), atol=1e-5)


@pytest.mark.parametrize("descriptors", [MindSSC.forward, whole_descriptors])
def test_in_the_air_the_variance_is_a_thousandth_of_its_mean(descriptors):
    image = torch.randn(1, 1, 4, 3, 9)
    image[..., 4:] *= 0.01

    mind = descriptors(MindSSC(1, 1), image)

    np.testing.assert_allclose(mind[0], slow_mind(image[0, 0].double().numpy(), 1, 1), atol=1e-5)


@pytest.mark.parametrize(("radius", "dilation"), SETTINGS)
def test_golden_descriptors(golden_dir, radius, dilation):
    golden = np.load(golden_dir / "mind_ssc.npz")

    mind = MindSSC(radius, dilation, compat=True)(torch.from_numpy(golden["image"])[None, None])

    np.testing.assert_allclose(mind[0], golden[f"mind_r{radius}_d{dilation}"], atol=1e-5)


@pytest.mark.parametrize(("radius", "dilation"), SETTINGS)
def test_the_best_channel_is_one_and_the_mean_exponent_is_one(radius, dilation):
    mind = MindSSC(radius, dilation)(torch.randn(2, 1, *SIZE))

    assert mind.shape == (2, MindSSC().channels, *SIZE)
    assert torch.equal(mind.amax(1), torch.ones(2, *SIZE))
    torch.testing.assert_close(
        -mind.double().log().mean(1), torch.ones(2, *SIZE, dtype=torch.float64), rtol=0, atol=1e-3
    )
    assert mind.min() >= 0.999 * np.exp(-12)


@pytest.mark.parametrize(("scale", "offset"), [(3.0, 5.0), (-2.5, 1.0), (1e6, 0.0), (1e-6, 0.0)])
def test_scale_offset_and_contrast_do_not_matter(texture, scale, offset):
    image = texture(SIZE)

    mind = MindSSC()(scale * image + offset)

    torch.testing.assert_close(mind, MindSSC()(image), rtol=0, atol=1e-4)


def test_inverted_contrast_changes_not_even_the_last_digit():
    image = torch.randn(1, 1, *SIZE)

    assert torch.equal(MindSSC()(-image), MindSSC()(image))


@pytest.mark.parametrize("value", [0.0, -1024.0, 1e6])
@pytest.mark.parametrize("compat", [False, True])
def test_a_constant_image_gives_ones(value, compat):
    assert torch.equal(MindSSC(compat=compat)(torch.full((1, 1, 6, 7, 8), value)), torch.ones(1, 12, 6, 7, 8))


def test_a_constant_region_gives_ones_wherever_no_patch_leaves_it():
    image = torch.randn(1, 1, 20, 9, 9)
    image[:, :, :12] = 3

    mind = MindSSC(radius=1, dilation=2)(image)

    assert torch.equal(mind[:, :, :9], torch.ones(1, 12, 9, 9, 9))
    assert mind[:, :, 9:].amin(1).max() < 0.9


def test_faint_noise_in_the_air_stays_near_one():
    image = torch.randn(1, 1, 24, 9, 9)
    image[:, :, :12] *= 0.001

    mind = MindSSC(radius=1, dilation=2)(image)

    # noise has a millionth of the variance of the other half, the floor is a thousandth of the mean of both halves
    assert mind[:, :, :9].min() > 0.95
    assert mind[:, :, 15:].mean() < 0.6


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1)])
def test_a_flipped_image_has_flipped_and_permuted_channels(axis, radius, dilation):
    image, mind = torch.randn(1, 1, *SIZE), MindSSC(radius, dilation)

    flipped_back = mind(image.flip(2 + axis)).flip(2 + axis)

    torch.testing.assert_close(flipped_back, mind(image)[:, FLIPPED[axis]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", SWAPPED)
def test_swapped_axes_permute_the_channels(axes):
    image, dims = torch.randn(1, 1, *SIZE), [2 + axis for axis in axes]

    swapped_back = MindSSC()(image.transpose(*dims)).transpose(*dims)

    torch.testing.assert_close(swapped_back, MindSSC()(image)[:, SWAPPED[axes]], rtol=0, atol=1e-5)


def test_a_shifted_image_has_shifted_descriptors_inside(shifted_pair):
    moving, fixed = shifted_pair((16, 14, 15), (2, -1, 3))

    mind_moving, mind_fixed = MindSSC()(moving), MindSSC()(fixed)

    inside = mind_fixed[..., 3:-5, 4:-3, 3:-6]  # patches end 3 voxels away, plus the shift
    torch.testing.assert_close(inside, mind_moving[..., 5:-3, 3:-4, 6:-3], rtol=0, atol=1e-5)


def test_images_of_a_batch_do_not_see_each_other_unless_compat_lets_them():
    faint = torch.randn(1, 1, *SIZE)
    batch = torch.cat([faint, 1000 * torch.randn(1, 1, *SIZE)])

    torch.testing.assert_close(MindSSC()(batch)[:1], MindSSC()(faint))
    assert MindSSC(compat=True)(batch)[:1].min() > 0.9  # drowned in the other's mean variance


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float64])
def test_every_type_of_image_gives_float32(dtype):
    image = torch.randint(0, 200, (1, 1, *SIZE)).to(dtype)

    mind = MindSSC()(image)

    torch.testing.assert_close(mind, MindSSC()(image.float()))
    assert mind.dtype == torch.float32


def test_the_image_stays_as_it_was():
    image = torch.randn(1, 1, *SIZE)
    before = image.clone()

    MindSSC()(image)

    assert torch.equal(image, before)


def test_a_descriptor_can_be_differentiated_by_the_image(texture):
    image, direction = texture(SIZE).requires_grad_(), texture(SIZE, seed=1)
    weights = torch.randn(1, 12, *SIZE)

    def value(step):
        return (MindSSC()(image + step * direction).double() * weights).sum()

    value(0).backward()

    slope = (value(1e-4) - value(-1e-4)).detach() / 2e-4
    torch.testing.assert_close((image.grad * direction).sum().double(), slope, rtol=0.01, atol=0)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("size", [SIZE, (5, 4, 13), (13, 12, 7)])
@pytest.mark.parametrize(("radius", "dilation"), [(0, 1), (1, 2), (2, 1), (3, 3), (1, 3)])
@pytest.mark.usefixtures("thin_slabs")
def test_slabs_give_what_the_whole_gives_on_every_grid(size, radius, dilation, compat):
    image, mind = torch.randn(2, 1, *size), MindSSC(radius, dilation)
    spacings = [(3, 2, 4), (2, 4, 2), (1, 1, 1), (5, 3, 7)]

    pooled = mind.pooled(image, spacings, compat)

    whole = whole_descriptors(mind, image)
    for found, spacing in zip(pooled, spacings, strict=True):
        torch.testing.assert_close(found, pool_to_grid(whole, spacing, compat), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 9, 10), (2, 3, 1), (4, 1, 7), (1, 1, 1)])
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (3, 3)])
@pytest.mark.usefixtures("thin_slabs")
def test_images_thinner_than_cells_and_patches_are_pooled(size, radius, dilation):
    image, mind = torch.randn(2, 1, *size), MindSSC(radius, dilation)

    pooled = mind.pooled(image, [(6, 6, 6), (2, 2, 2)])

    whole = whole_descriptors(mind, image)
    torch.testing.assert_close(pooled, [pool_to_grid(whole, (step,) * 3) for step in (6, 2)], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("thin_slabs")
@pytest.mark.parametrize("batch_mean", [False, True])
def test_the_noise_level_is_that_of_all_slabs_and_in_compat_of_the_batch(batch_mean):
    image, mind = torch.randn(2, 1, 14, 9, 10), MindSSC(compat=batch_mean)
    # air, whose floor depends on what lies in other slabs
    image[:, :, :8] *= 0.01
    image[1] *= 100

    torch.testing.assert_close(mind(image), whole_descriptors(mind, image), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("thin_slabs")
def test_pooled_descriptors_need_a_fraction_of_the_memory_of_all(largest_tensor):
    image = torch.randn(1, 1, 40, 11, 13)

    with largest_tensor() as largest:
        MindSSC(1, 2).pooled(image, [(4, 4, 4), (2, 2, 2)])

    # slabs of four rows, and the finer grid
    assert largest.values <= 12 * max(4 * 11 * 13, 20 * 6 * 7)
    assert largest.values < 0.15 * 12 * image.numel()


@pytest.mark.usefixtures("thin_slabs")
def test_where_gradients_are_wanted_patches_are_compared_once_and_not_in_slabs(texture, largest_tensor):
    image = texture(SIZE).requires_grad_()

    with largest_tensor() as largest:
        MindSSC().pooled(image, [(2, 3, 4), (3, 3, 3)])

    assert largest.values == 12 * image.numel()


def test_gradients_flow_through_pooled_descriptors(texture):
    image = texture(SIZE).requires_grad_()
    mind = MindSSC()

    (pooled,) = mind.pooled(image, [(2, 3, 4)])
    pooled.square().sum().backward()

    found, image.grad = image.grad, None
    pool_to_grid(mind(image), (2, 3, 4)).square().sum().backward()
    torch.testing.assert_close(found, image.grad)
    assert found.abs().max() > 0


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (1, 8, 8, 8), (1, 1, 8, 8)])
def test_anything_but_one_channel_in_three_dimensions_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, 1, I, J, K\), got \(1, "):
        MindSSC()(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\(B, 1, I, J, K\), got \(1, "):
        MindSSC()(torch.zeros(shape, requires_grad=True))


@pytest.mark.parametrize(("radius", "dilation"), [(-1, 2), (1, 0)])
def test_impossible_patches_are_refused(radius, dilation):
    with pytest.raises(ValueError, match=f"radius={radius}, dilation={dilation}"):
        MindSSC(radius, dilation)
