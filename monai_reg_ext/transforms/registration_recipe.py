# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.networks.utils import eval_mode
from monai.utils import convert_to_tensor, ensure_tuple
from torch import nn

from monai_reg_ext.data.bundle_dir import bundle_dir

__all__ = ["RegistrationRecipe", "read_bundle_config"]

PARTS = ("preparation", "network", "completion")
MASKS = ("moving_mask", "fixed_mask")

Item = Mapping[Hashable, Any]


@dataclass(frozen=True)
class RegistrationRecipe:
    """All that lies between a loaded pair and its displacement field.

    Args:
        preparation: from ``fixed`` and ``moving`` (and ``<side>_mask``, ``<side>_label`` where present), on grids of
            their own, to the network's ``image`` ``(2C, I, J, K)``.
        network: ``(1, 2C, I, J, K) -> (1, 3, I, J, K)``, ddf on the working grid. Where its ``forward`` has arguments
            ``moving_mask`` and ``fixed_mask`` it gets the ``<side>_mask_working`` that the preparation made.
        completion: from ``pred``, the network's result, to ``pred``, the total ddf on the fixed grid; where it also
            makes ``pred_inverse`` on the moving grid, this is the way back, and ``uncertainty`` the ddf's standard
            deviation in mm.
        device: where the network works; ``None`` is where the pair is.
    """

    preparation: Callable[[Item], Item]
    network: nn.Module
    completion: Callable[[Item], Item]
    device: torch.device | str | None = None

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path,
        settings: Sequence[str | Path] | str | Path = (),
        device: torch.device | str | None = None,
        **overrides: Any,
    ) -> RegistrationRecipe:
        """Recipe of a bundle, from the ids ``preparation``, ``network`` and ``completion`` of its inference config.

        Args:
            bundle: folder, or name of a bundle that comes with the package.
            settings: further config files, merged in this order; a file, or a name in the bundle's ``configs``.
            device: see the class; ``None`` is what the bundle says, as a rule a GPU where there is one.
            overrides: config ids and their values, e.g. ``initial="affine"``, ``**{"network_def#passes": 2}``.

        Raises:
            FileNotFoundError: for an unknown bundle or settings file, or weights that are missing.
            ValueError: for an id that the config does not have.
        """
        return cls.from_config(read_bundle_config(bundle, settings, **overrides), device)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], device: torch.device | str | None = None) -> RegistrationRecipe:
        """Recipe of a config as :py:func:`read_bundle_config` gives it."""
        parser = ConfigParser(dict(config))
        if device is not None:
            parser["device"] = torch.device(device)
        preparation, network, completion = (parser.get_parsed_content(part) for part in PARTS)
        if "weights" not in config:  # otherwise the config loads them itself, from wherever they are
            _load_weights(network, Path(config["bundle_root"]) / "models" / "model.pt")
        return cls(preparation, network, completion, parser.get_parsed_content("device", default=None))

    def __call__(self, pair: Item) -> dict[Hashable, Any]:
        """Pair with ``pred`` and whatever else preparation and completion add to it; results are where the pair is."""
        item = dict(self.preparation(pair))
        image = convert_to_tensor(item["image"], track_meta=False)
        with eval_mode(self.network):
            pred = self.network(image[None].to(self.device), **self._masks(item))
        item["pred"] = pred[0].to(image.device)
        return dict(self.completion(item))

    def _masks(self, item: Item) -> dict[str, torch.Tensor]:
        present = [name for name in MASKS if f"{name}_working" in item]
        taken = inspect.signature(self.network.forward).parameters if present else ()
        return {
            name: convert_to_tensor(item[f"{name}_working"], track_meta=False)[None].to(self.device)
            for name in present
            if name in taken
        }


def read_bundle_config(
    bundle: str | Path, settings: Sequence[str | Path] | str | Path = (), **overrides: Any
) -> dict[str, Any]:
    """Inference config of a bundle, nothing instantiated; see :py:meth:`RegistrationRecipe.from_bundle`."""
    folder = bundle_dir(bundle).resolve()
    configs = folder / "configs"
    inference = next((path for path in sorted(configs.glob("inference.*")) if _is_config(path)), None)
    if inference is None:
        raise FileNotFoundError(f"{folder} is no registration bundle: configs has no inference.json.")
    parser = ConfigParser()
    parser.read_config([inference, *(_settings_file(name, configs) for name in ensure_tuple(settings))])
    known = {key for key in parser.get() if not key.startswith("_")}
    for part in PARTS:
        if part not in known:
            raise ValueError(f"{inference} has no {part}; to register a pair it needs {', '.join(PARTS)}.")
    unknown = [key for key in overrides if key.replace("::", "#").split("#")[0] not in known]
    if unknown:
        raise ValueError(f"no id {', '.join(unknown)} in {inference}; there are {', '.join(sorted(known))}.")
    parser.update({"bundle_root": str(folder)} | overrides)
    return parser.get()


def _settings_file(name: str | Path, configs: Path) -> Path:
    candidates = [Path(name).expanduser(), configs / name, configs / f"{name}.json"]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        there = ", ".join(sorted(path.name for path in configs.iterdir() if _is_config(path)))
        raise FileNotFoundError(f"no settings {str(name)!r}: give a config file, or one of {there}.")
    return found


def _is_config(path: Path) -> bool:
    return path.suffix.lstrip(".") in ConfigParser.suffixes


def _load_weights(network: nn.Module, path: Path) -> None:
    if next(network.parameters(), None) is None:
        return
    if not path.is_file():
        raise FileNotFoundError(f"the network of this bundle has weights, but there is no {path}.")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
