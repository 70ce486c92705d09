# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The methods that ``learned_optimisation.py`` compares: configs of two bundles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_reg_ext.engines import prepare_pair_batch
from monai_reg_ext.networks.blocks import AdamRefiner
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.transforms.registration_recipe import read_bundle_config

__all__ = ["Method", "Prepared", "convergence", "learned_methods", "prepared_by"]

L2O, VMPP, VM = "learn2optimise", "voxelmorph_pp", "voxelmorph"


class Recipe(NamedTuple):
    """Bundle, settings, whose weights are needed (the first ones are the config's own)."""

    bundle: str
    settings: tuple[str, ...]
    needs: tuple[str, ...]


RECIPES = {
    "Adam": Recipe(L2O, ("adam",), ()),
    "Learn2Optimise": Recipe(L2O, (), (L2O,)),
    "Learn2Optimise + Adam": Recipe(L2O, ("refined",), (L2O,)),
    "VoxelMorph": Recipe(VMPP, ("voxelmorph", "network_only"), (VM,)),
    "VoxelMorph++": Recipe(VMPP, ("network_only",), (VMPP,)),
    "VoxelMorph++ + Adam": Recipe(VMPP, (), (VMPP,)),
    "VoxelMorph++ + Learn2Optimise": Recipe(L2O, ("pre_registered",), (L2O, VMPP)),
}


class Prepared(NamedTuple):
    """A pair as a network takes it, and how its result becomes a field on the fixed grid."""

    image: torch.Tensor
    masks: dict[str, torch.Tensor]
    completed: Callable[[torch.Tensor], torch.Tensor]


class Method(NamedTuple):
    """A network, ``None`` for no registration, with what its bundle does before and behind it."""

    bundle: str
    prepare: Callable[[Mapping[str, Any]], dict[str, Any]]
    network: nn.Module | None
    complete: Callable[[Mapping[str, Any]], dict[str, Any]]
    iterations: int

    @torch.no_grad()
    def register(self, item: Prepared) -> torch.Tensor:
        """Field ``(1, 3, i, j, k)`` on the working grid."""
        if self.network is None:
            return item.image.new_zeros((1, 3, *item.image.shape[2:]))
        return self.network(item.image, **item.masks)


class State(NamedTuple):
    """A field ``(1, 3, i, j, k)`` on the working grid, its energy, and the CPU seconds since the features."""

    iteration: int
    seconds: float
    energy: float
    ddf: torch.Tensor


def learned_methods(weights: Mapping[str, str], overrides: Mapping[str, Any]) -> dict[str, Method]:
    """Those methods by name whose weights are given.

    Args:
        weights: files by ``"learn2optimise"``, ``"voxelmorph_pp"`` and ``"voxelmorph"``.
        overrides: ids of configs and their values; a config that has no such id does without.
    """
    methods = {
        name: _method(recipe, weights, overrides) for name, recipe in RECIPES.items() if {*recipe.needs} <= {*weights}
    }
    return {"before": methods["Adam"]._replace(network=None, iterations=0), **methods}


def prepared_by(method: Method, pair: Mapping[str, Any]) -> Prepared:
    """The pair on the method's working grid."""
    item = method.prepare(dict(pair))
    batch = {
        key: item[key].as_tensor()[None]
        for key in ("image", "moving_mask_working", "fixed_mask_working")
        if key in item
    }
    image, _, _, masks = prepare_pair_batch(batch, "cpu")
    return Prepared(image, masks, lambda ddf: method.complete({**item, "pred": ddf[0]})["pred"].as_tensor())


@torch.no_grad()
def convergence(item: Prepared, methods: Mapping[str, Method]) -> Iterator[tuple[str, State]]:
    """Name and state after every iteration of Adam and of Learn2Optimise, if it is among the methods."""
    sides = *item.image.chunk(2, dim=1), item.masks.get("moving_mask"), item.masks.get("fixed_mask")
    net = methods["Adam"].network
    judged = _view(net, sides)
    judge = AdamRefiner(regularization=net.estimator.regularization)
    energy = judge._energy(judged.fixed, judged.moving, judged.fixed_mask, judged.moving_mask)
    fields = {"Adam": _adams_fields}
    if "Learn2Optimise" in methods:
        fields["Learn2Optimise"] = _fields_of
    for name, fields_of in fields.items():
        net = methods[name].network
        view = _view(net, sides)
        for number, (seconds, field) in enumerate(fields_of(net.estimator, view)):
            ddf = net._at_full_size(field, [view], item.image.shape[2:])
            cells = pool_to_grid(ddf, judged.spacing) / ddf.new_tensor(judged.spacing).view(1, 3, 1, 1, 1)
            yield name, State(number, seconds, float(energy.gradient(cells)[1].sum()), ddf)


def _view(net: nn.Module, sides: tuple[torch.Tensor | None, ...]) -> Any:
    """The pair as the network's estimator sees it, on cells of its own size."""
    (view,) = net._views(*net._sides(*sides), [net.estimator])
    return view


def _fields_of(estimator: nn.Module, view: Any) -> Iterator[tuple[float, torch.Tensor]]:
    """CPU seconds so far, and the field in cells, at the start and after every iteration."""
    seconds, fields = 0.0, view.shown_to(estimator.fields)
    while True:
        begin = time.process_time()
        field = next(fields, None)
        if field is None:
            return
        seconds += time.process_time() - begin
        yield seconds, field


def _adams_fields(refiner: AdamRefiner, view: Any) -> list[tuple[float, torch.Tensor]]:
    watched = _WatchedAdam(
        refiner.grid_spacing, refiner.iterations, refiner.regularization, refiner.smooth_widths, refiner.learning_rate
    )
    begin = time.process_time()
    view.shown_to(watched)
    return [(now - begin, field) for now, field in watched.seen]


class _WatchedAdam(AdamRefiner):
    """Keeps every field."""

    def forward(self, *features: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
        self.seen: list[tuple[float, torch.Tensor]] = []
        return super().forward(*features, **masks)

    def _field(self, control_values: torch.Tensor) -> torch.Tensor:
        field = super()._field(control_values)
        self.seen.append((time.process_time(), field.clone()))
        return field


def _method(recipe: Recipe, weights: Mapping[str, str], overrides: Mapping[str, Any]) -> Method:
    files = {"pre_registration_weights": weights[VMPP]} if "pre_registered" in recipe.settings else {}
    if recipe.needs:
        files["weights"] = str(Path(weights[recipe.needs[0]]).expanduser())
    config = read_bundle_config(recipe.bundle, recipe.settings)
    # an id that leads nowhere belongs to another method's config
    known = {key: value for key, value in overrides.items() if _holds(config, key)}
    parser = ConfigParser(read_bundle_config(recipe.bundle, recipe.settings, device="cpu", **files, **known))
    prepare, network, complete = (parser.get_parsed_content(part) for part in ("preparation", "network", "completion"))
    stages = [network.estimator, *network.refiners]
    return Method(
        recipe.bundle, prepare, network.eval(), complete, sum(getattr(stage, "iterations", 0) for stage in stages)
    )


def _holds(config: Mapping[str, Any], key: str) -> bool:
    *path, last = key.split("#")
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return isinstance(config, Mapping) and last in config
