# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter


def _texture(size, smoothness=1.5, seed=0):
    noise = np.random.default_rng(seed).standard_normal(size)
    smooth = gaussian_filter(noise, smoothness)
    return torch.from_numpy(smooth / smooth.std()).float()[None, None]


def _shifted_pair(size, shift, seed=0):
    margin = 12
    scene = _texture([extent + 2 * margin for extent in size], seed=seed)

    def view(start):
        return scene[(..., *(slice(s, s + extent) for s, extent in zip(start, size, strict=True)))].clone()

    return view([margin] * 3), view([margin + s for s in shift])


def _smooth_field(size, magnitude, smoothness=3.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal((3, *size))
    smooth = gaussian_filter(noise, (0, *[smoothness] * 3))
    return torch.from_numpy(magnitude * smooth / np.abs(smooth).max()).float()[None]


def _interior(volume, margin):
    return volume[(..., *(slice(margin, extent - margin) for extent in volume.shape[2:]))]


@pytest.fixture(scope="session")
def texture():
    """``texture(size, smoothness, seed)``: random image ``(1, 1, *size)`` of zero mean and unit deviation."""
    return _texture


@pytest.fixture(scope="session")
def shifted_pair():
    """``shifted_pair(size, shift, seed)``: moving and fixed view of one scene, ``fixed(x) = moving(x + shift)``."""
    return _shifted_pair


@pytest.fixture(scope="session")
def smooth_field():
    """``smooth_field(size, magnitude, smoothness, seed)``: random field ``(1, 3, *size)``, largest component given."""
    return _smooth_field


@pytest.fixture(scope="session")
def interior():
    """``interior(volume, margin)``: the volume without its outermost voxels."""
    return _interior


@pytest.fixture(scope="session")
def golden_convex(golden_dir):
    """Reference cost volume, coupled convex fields and inverse-consistent fields, with a batch axis in front."""
    arrays = np.load(golden_dir / "coupled_convex.npz")
    return {name: torch.from_numpy(arrays[name])[None] for name in arrays if name not in ("half_width", "mesh")} | {
        "half_width": (int(arrays["half_width"]),) * 3,
        "labels": torch.from_numpy(arrays["mesh"]).T,
    }


@pytest.fixture(scope="session")
def golden_pdd(golden_dir):
    """Reference PDD-Net: images, Obelisk features and weights, probabilities, displacements, non-local labels."""
    arrays = np.load(golden_dir / "pddnet.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture
def thin_slabs(monkeypatch):
    """What torch computes slab by slab is so in the thinnest slabs that there are; no compiled kernels."""
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")
    monkeypatch.setattr(importlib.import_module("monai_reg_ext.networks.layers.pool_to_grid"), "_CPU_SLAB", 1)


@pytest.fixture
def compiled(monkeypatch):
    """``compiled(call)``: the call's result, which must come from the compiled kernels."""
    pytest.importorskip("numba", reason="numba is not installed: there are no compiled kernels")
    from monai_reg_ext.networks.kernels import runtime

    def run(call):
        loaded = []
        with monkeypatch.context() as patch:
            patch.setenv("MONAI_REG_NUMBA", "1")
            load = runtime._load
            patch.setattr(runtime, "_load", lambda name: loaded.append(name) or load(name))
            result = call()
        assert loaded, "the call never asked for a compiled kernel"
        return result

    return run


@pytest.fixture
def plain(monkeypatch):
    """``plain(call)``: the call's result without compiled kernels."""

    def run(call):
        with monkeypatch.context() as patch:
            patch.setenv("MONAI_REG_NUMBA", "0")
            return call()

    return run
