# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from monai_reg_ext.apps.bundle_run import INPUT_IDS, PLACE_IDS
from monai_reg_ext.apps.config_leaves import config_leaves
from monai_reg_ext.apps.copy_bundle import copy_bundle
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data.bundle_dir import bundle_dir, bundle_names

__all__ = ["bundles"]

OWN_CONFIGS = ("inference", "evaluate", "train", "metadata")
WIDTH = 100


def bundles(action: str = "list", name: str | None = None, folder: str | None = None) -> None:
    """Show the registration methods that are installed.

    monai-reg bundles [list]          their names
    monai-reg bundles describe NAME   what one does, its settings and options
    monai-reg bundles copy NAME DIR   a copy to change, as the new folder DIR

    NAME is also the folder of a bundle. A copy is used by its folder: --method DIR.

    Example: monai-reg bundles copy convex_adam my_method
    """
    given = [str(argument) for argument in (name, folder) if argument is not None]
    if action == "list" and not given:
        print("\n".join(f"{bundle:20s} {_metadata(bundle_dir(bundle))['task']}" for bundle in bundle_names()))
    elif action == "describe" and len(given) == 1:
        print(_description(bundle_dir(given[0])))
    elif action == "copy" and len(given) == 2:
        folder = copy_bundle(bundle_dir(given[0]), given[1])
        print(f"{folder}: use it by --method {folder}")
    else:
        raise UsageError(f"{' '.join(['bundles', str(action), *given])}: it is list, describe NAME or copy NAME DIR.")


def _metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def _description(bundle: Path) -> str:
    metadata = _metadata(bundle)
    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    configs = sorted({path.stem for path in (bundle / "configs").glob("*.json")} - set(OWN_CONFIGS))
    # others are for training, and for several processes
    settings = [name for name in configs if not name.startswith(("search_", "train_", "multi_gpu_"))]
    paragraphs = [
        f"{bundle.name}: {metadata['name']}, version {metadata['version']}",
        f"{metadata['description']}. {metadata['intended_use']}.",
        f"--settings: {', '.join(settings) or 'none'}",
        f"options and their values: {', '.join(_options(config))}",
        *metadata["references"],
        f"folder: {bundle}",
    ]
    return "\n".join(textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in paragraphs)


def _options(config: dict[str, Any]) -> list[str]:
    """What may be given as ``--id value``: plain values of the config's top level and of its network."""
    top = {key: value for key, value in config.items() if key not in (*PLACE_IDS, *INPUT_IDS, "imports", "network")}
    plain = {key: value for key, value in top.items() if not isinstance(value, (dict, list))}
    network = config_leaves({"network_def": top.get("network_def", {})})
    parts = {key: value for key, value in network.items() if not key.endswith("_target_")}
    return [f"--{key} {value}" for key, value in {**plain, **parts}.items() if not str(value).startswith("$")]
