# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_reg_ext.data import whole_file

__all__ = ["load_weights", "save_weights"]


def load_weights(network: nn.Module, path: str | Path, part: str = "", unused: str = "") -> nn.Module:
    """The network with the weights of a file; weights that are not this network's end the process with one line.

    Args:
        network: takes the weights.
        path: a bare state dict, as ``models/model.pt`` is. What several parts of the network share is in it once.
        part: name of the network in the one that the weights are of, e.g. ``features.fusion``; by default it is that.
        unused: weights whose names begin so are left in the file, and those of the network are left as they are.

    Raises:
        SystemExit: when the file is absent, no state dict, or made for another network.
    """
    path = Path(path).expanduser()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler happens to meet
        raise SystemExit(f"error: {path} cannot be read as weights: {error}".splitlines()[0]) from None
    needed, further_names = _needed(network)
    if isinstance(weights, Mapping):
        prefix = f"{part}." if part else ""
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        weights = {key: value for key, value in weights.items() if key not in further_names}
        if unused:
            needed, weights = (
                {key: value for key, value in state.items() if not key.startswith(unused)}
                for state in (needed, weights)
            )
    if problem := _misfit(needed, weights):
        raise SystemExit(
            f"error: {path}: {problem}. Give the weights that were trained with this config, or the config (labels, "
            "channels) that belongs to these weights."
        )
    # not strict: what is shared goes by its first name
    network.load_state_dict(weights, strict=False)
    return network


def save_weights(path: str | Path, parts: Mapping[str, nn.Module | str | Path]) -> None:
    """One state dict out of those of a network's parts.

    Args:
        path: file to write.
        parts: modules, or files of state dicts, by their names in the whole network; ``""`` is the whole itself.
    """
    weights = {}
    for name, part in parts.items():
        own = part.state_dict() if isinstance(part, nn.Module) else torch.load(part, map_location="cpu")
        weights.update({f"{name}.{key}".lstrip("."): value.cpu() for key, value in own.items()})
    with whole_file(path) as unfinished:
        torch.save(weights, unfinished)


def _needed(network: nn.Module) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The state dict with everything once, and the further names of what several parts share."""
    state = network.state_dict()
    first_names = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return {name: value for name, value in state.items() if name in first_names}, state.keys() - first_names


def _misfit(needed: Mapping[str, torch.Tensor], got: Any) -> str:
    if not isinstance(got, Mapping) or not all(isinstance(value, torch.Tensor) for value in got.values()):
        return "holds no state dict, which maps names to tensors"
    for name in [*needed, *got]:
        if name not in got:
            return f"has no {name}, {len(needed.keys() - got.keys())} weights in all are missing"
        if name not in needed:
            return f"has {name}, which the network has not, {len(got.keys() - needed.keys())} weights in all"
        if needed[name].shape != got[name].shape:
            return f"{name} has shape {tuple(got[name].shape)}, the network needs {tuple(needed[name].shape)}"
    return ""
