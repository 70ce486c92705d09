# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest

from monai_reg_ext.data import bundle_dir, bundle_names


@pytest.fixture
def own_bundle(tmp_path):
    configs = tmp_path / "mine" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text("{}")
    return tmp_path / "mine"


def test_every_bundle_that_comes_with_the_package_is_found_by_its_name(bundles_dir):
    names = bundle_names()

    assert set(names) == {path.parents[1].name for path in bundles_dir.glob("*/configs/metadata.json")}
    assert "convex_adam" in names
    for name in names:
        assert json.loads((bundle_dir(name) / "configs" / "metadata.json").read_text())["name"]


def test_a_folder_is_its_own_bundle(own_bundle, monkeypatch):
    assert bundle_dir(own_bundle) == own_bundle
    assert bundle_dir(str(own_bundle)) == own_bundle

    monkeypatch.setenv("HOME", str(own_bundle.parent))

    assert bundle_dir("~/mine") == own_bundle


def test_a_changed_copy_in_the_current_folder_goes_before_the_bundle_of_that_name(own_bundle, monkeypatch):
    copy = own_bundle.rename(own_bundle.parent / "convex_adam")
    monkeypatch.chdir(copy.parent)

    assert bundle_dir("convex_adam").resolve() == copy


def test_a_folder_of_results_does_not_hide_the_bundle_of_that_name(tmp_path, monkeypatch, bundles_dir):
    (tmp_path / "convex_adam").mkdir()
    monkeypatch.chdir(tmp_path)

    assert bundle_dir("convex_adam") == bundles_dir / "convex_adam"


@pytest.mark.parametrize("wrong", ["convexadam", "", "/nowhere/convex_adam"])
def test_an_unknown_bundle_is_refused_with_the_names_that_exist(wrong):
    with pytest.raises(FileNotFoundError, match=rf"no bundle '{wrong}': give one of .*convex_adam"):
        bundle_dir(wrong)
