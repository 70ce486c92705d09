# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest
from monai.bundle.config_item import ComponentLocator

import monai_reg_ext

PACKAGE = Path(monai_reg_ext.__file__).parent
APPS = {"networks/layers", "networks/blocks", "networks/nets", "metrics", "transforms", "data", "handlers", "apps"}
# what each room may import from the rooms of the package, itself included
ROOMS = {
    "networks/kernels": {"networks/kernels"},
    "networks/layers": {"networks/kernels", "networks/layers"},
    "networks/blocks": {"networks/kernels", "networks/layers", "networks/blocks"},
    "networks/nets": {"networks/layers", "networks/blocks", "networks/nets"},
    "losses": {"networks/layers", "networks/blocks", "losses"},
    "metrics": {"networks/layers", "metrics"},
    "transforms": {"networks/layers", "networks/blocks", "transforms", "data"},
    "data": {"networks/layers", "transforms", "data"},
    "engines": {"data", "engines"},
    "handlers": {"networks/layers", "metrics", "transforms", "data", "handlers"},
    "apps": APPS,
    "apps/commands": APPS,
    "apps/label": APPS,
}


def public_classes() -> list[str]:
    rooms = (
        monai_reg_ext.apps,
        monai_reg_ext.data,
        monai_reg_ext.engines,
        monai_reg_ext.handlers,
        monai_reg_ext.metrics,
        monai_reg_ext.losses,
    )
    rooms += (monai_reg_ext.transforms, monai_reg_ext.networks.blocks, monai_reg_ext.networks.nets)
    return sorted({name for room in rooms for name in room.__all__ if inspect.isclass(getattr(room, name))})


@pytest.mark.parametrize("name", public_classes())
def test_monai_finds_exactly_one_class_of_this_name(name):
    assert isinstance(ComponentLocator().get_component_module_name(name), str)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_downwards_only(room):
    for path in (PACKAGE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("monai_reg_ext."):
                parts = node.module.split(".")[1:]
                imported = "/".join(parts[:2]) if parts[0] == "networks" else parts[0]
                assert imported in ROOMS[room], f"{path.name} imports {node.module}"


def test_bundles_ask_for_this_version_of_the_package(bundles_dir):
    for path in bundles_dir.glob("*/configs/metadata.json"):
        assert json.loads(path.read_text())["required_packages_version"]["monai-reg-ext"] == monai_reg_ext.__version__
