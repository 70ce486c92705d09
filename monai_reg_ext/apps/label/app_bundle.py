# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_reg_ext.apps.copy_bundle import copy_bundle
from monai_reg_ext.data import whole_file
from monai_reg_ext.data.bundle_dir import bundle_dir, bundle_names

__all__ = ["AppBundle", "app_bundles"]

OWN_BUNDLES = "model"  # in the app's folder, where MONAI Label has its models


class AppBundle:
    """A bundle as an app serves it: the app's own one in ``<app_dir>/model/<name>`` where it is, else the package's.

    What the folder holds is looked up whenever it is asked for, so that new weights count without a restart.

    Args:
        name: of the bundle.
        app_dir: folder of the app.
    """

    def __init__(self, name: str, app_dir: str | Path) -> None:
        self.name = name
        self.own_folder = Path(app_dir) / OWN_BUNDLES / name

    @property
    def folder(self) -> Path:
        """Where the bundle lies now."""
        return self.own_folder if (self.own_folder / "configs").is_dir() else bundle_dir(self.name)

    @property
    def weights(self) -> Path:
        """Where its weights lie, or would."""
        return self.folder / "models" / "model.pt"

    @property
    def is_complete(self) -> bool:
        """Whether it can register; without weights it cannot."""
        return self.weights.is_file()

    @property
    def is_trainable(self) -> bool:
        """Whether its ``train.json`` makes weights out of label maps, of which the datastore has nothing else."""
        return {"weights", "epochs", "labels"} <= self.config("train").keys()

    @property
    def settings(self) -> list[str]:
        """Names of the configs that change how it registers."""
        names = {path.stem for path in (self.folder / "configs").glob("*.json")} - {"inference", "evaluate", "metadata"}
        return sorted(name for name in names if "train" not in name and not name.startswith(("search_", "multi_gpu_")))

    def config(self, name: str) -> dict[str, Any]:
        """Content of one of its configs, empty when there is none."""
        path = self.folder / "configs" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def take_weights(self, weights: str | Path, labels: Sequence[int]) -> None:
        """Make new weights the app's own ones, in a copy of the bundle whose configs name the labels they know.

        Args:
            weights: file of a state dict.
            labels: label values, background first.
        """
        if self.folder != self.own_folder:
            copy_bundle(self.folder, self.own_folder)
        for path in (self.own_folder / "configs").glob("*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content.get("labels"), list):
                with whole_file(path) as unfinished:
                    unfinished.write_text(json.dumps(content | {"labels": list(labels)}, indent=4), encoding="utf-8")
        with whole_file(self.weights) as unfinished:
            shutil.copyfile(weights, unfinished)


def app_bundles(app_dir: str | Path, names: str = "") -> dict[str, AppBundle]:
    """The bundles of an app: those in its folder ``model`` and those that come with the package.

    Args:
        app_dir: folder of the app.
        names: only these, separated by commas; empty for all.

    Raises:
        ValueError: when there is no bundle of a name, with those that there are.
    """
    own = {path.parents[1].name for path in (Path(app_dir) / OWN_BUNDLES).glob("*/configs/metadata.json")}
    known = sorted({*own, *bundle_names()})
    wanted = [name.strip() for name in names.split(",") if name.strip()] or known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no bundle {', '.join(unknown)}: there are {', '.join(known)}. Correct --conf models.")
    return {name: AppBundle(name, app_dir) for name in wanted}
