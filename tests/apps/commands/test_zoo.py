# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib
import json

import pytest
from monai.bundle import download

from monai_reg_ext.apps.commands import zoo
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data.bundle_dir import bundle_names

pytest.importorskip("jsonschema")


def test_sound_bundles_are_packed_and_the_others_told(bundles_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "configs").mkdir(parents=True)
    (tmp_path / "mine" / "configs" / "metadata.json").write_text("{}")

    with pytest.raises(ValueError, match="1 of 2 bundles are not fit for a zoo"):
        zoo("pack", "convex_adam", "mine")

    assert "mine: LICENSE is missing." in capsys.readouterr().out
    (source,) = (entry["source"] for entry in json.loads((tmp_path / "dist" / "model_info.json").read_text()).values())
    download("convex_adam", url=source, bundle_dir="here", progress=False)
    assert (tmp_path / "here" / "convex_adam" / "LICENSE").read_bytes() == (
        bundles_dir / "convex_adam" / "LICENSE"
    ).read_bytes()


def test_a_check_of_all_names_every_bundle_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("monai_reg_ext.apps.commands.zoo"), "zoo_problems", lambda bundle: [])

    zoo()

    assert capsys.readouterr().out.split("\n")[:-1] == [f"{name}: no objections" for name in bundle_names()]
    assert not list(tmp_path.iterdir())


def test_another_word_is_not_understood():
    with pytest.raises(UsageError, match="zoo check or zoo pack"):
        zoo("send")
