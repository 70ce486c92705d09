# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The methods that ``accuracy.py`` compares, each from a loaded pair to one field on the fixed grid."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from monai_reg_ext.engines import prepare_pair_batch
from monai_reg_ext.transforms import SpatialDisplacement

__all__ = ["Method", "benchmark_methods"]

Method = Callable[[Mapping[str, Any]], SpatialDisplacement]
NETWORK_INPUTS = ("image", "moving_mask_working", "fixed_mask_working")


def benchmark_methods(bundle: ConfigParser) -> dict[str, Method]:
    """Methods by name. ``ours`` and ``convexAdam`` share the bundle's preparation, also its linear stage and masks.

    Args:
        bundle: the parsed configuration of our bundle.
    """
    return {
        "before": _before,
        "ours": _on_working_grid(bundle, _ours(bundle)),
        "convexAdam": _on_working_grid(bundle, _convex_adam),
        "elastix": _elastix,
        "ants": _ants,
        "ants_cc": partial(_ants, kind="antsRegistrationSyN[s]"),
    }


def _before(pair: Mapping[str, Any]) -> SpatialDisplacement:
    fixed = pair["fixed"]
    return SpatialDisplacement(torch.zeros(3, *fixed.shape[1:]), fixed.affine)


def _on_working_grid(bundle: ConfigParser, estimate: Callable[[dict[str, Any]], torch.Tensor]) -> Method:
    """What the bundle does around the network, but for loading and saving."""
    prepare, complete = (bundle.get_parsed_content(part) for part in ("preparation", "completion"))

    def register(pair: Mapping[str, Any]) -> SpatialDisplacement:
        prepared = prepare(dict(pair))
        return SpatialDisplacement.from_metatensor(complete({**prepared, "pred": estimate(prepared)})["pred"])

    return register


def _ours(bundle: ConfigParser) -> Callable[[dict[str, Any]], torch.Tensor]:
    network, device = (bundle.get_parsed_content(part) for part in ("network", "device"))

    @torch.no_grad()
    def estimate(prepared: dict[str, Any]) -> torch.Tensor:
        batch = {key: prepared[key].as_tensor()[None] for key in NETWORK_INPUTS if key in prepared}
        image, _, _, masks = prepare_pair_batch(batch, device)
        return network(image, **masks)[0].cpu()

    return estimate


def _convex_adam(prepared: dict[str, Any]) -> torch.Tensor:
    from convexAdam.convex_adam_MIND import convex_adam_pt

    image = prepared["image"].as_tensor()
    with contextlib.redirect_stdout(io.StringIO()):  # a warning about half precision for every pair
        displacement = convex_adam_pt(image[1], image[0])
    return torch.from_numpy(displacement.astype(np.float32)).movedim(-1, 0)


def _elastix(pair: Mapping[str, Any]) -> SpatialDisplacement:
    from elastix_method import register_with_elastix

    return register_with_elastix(pair)


def _ants(pair: Mapping[str, Any], kind: str = "SyN") -> SpatialDisplacement:
    from ants_method import register_with_ants

    return register_with_ants(pair, kind)
