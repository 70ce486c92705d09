# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

import monai_reg_ext
from monai_reg_ext.apps.commands import label_app

REPOSITORY = Path(monai_reg_ext.__file__).parents[1]
BY_MONAI_LABEL = {"monailabel", "fastapi"}


def test_the_app_has_what_the_server_starts_and_how_to_start_it(tmp_path, capsys):
    label_app(str(tmp_path / "app"))

    assert sorted(path.name for path in (tmp_path / "app").iterdir()) == ["README.md", "constraints.txt", "main.py"]
    assert "README.md" in capsys.readouterr().out


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "main.py").write_text("mine")

    with pytest.raises(ValueError, match="exists already"):
        label_app(str(tmp_path))

    assert (tmp_path / "main.py").read_text() == "mine"


def test_monai_label_is_in_its_own_extra_only():
    options = configparser.ConfigParser(interpolation=None)
    options.read(REPOSITORY / "setup.cfg")

    assert "monailabel" not in options["options"]["install_requires"]
    extras = dict(options["options.extras_require"])
    assert [name for name, packages in extras.items() if "monailabel" in packages] == ["label"]
    assert not any("%(label)s" in packages for packages in extras.values())


def test_every_exact_pin_of_the_extra_is_the_one_of_the_constraints():
    options = configparser.ConfigParser(interpolation=None)
    options.read(REPOSITORY / "setup.cfg")
    constraints = (Path(monai_reg_ext.__file__).parent / "apps/label/app_folder/constraints.txt").read_text().split()

    pins = [line for line in options["options.extras_require"]["label"].split() if "==" in line]
    assert pins
    assert set(pins) <= set(constraints)


def test_few_files_need_monai_label():
    folder = Path(monai_reg_ext.__file__).parent / "apps" / "label"
    needing = set()
    for path in folder.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        if BY_MONAI_LABEL & {(node.module or "").split(".")[0] for node in nodes}:
            needing.add(path.stem)

    assert needing == {"batch_task", "infer_task", "registration_app", "train_task"}
