# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest
import torch

from monai_reg_ext.apps.copy_bundle import copy_bundle
from monai_reg_ext.apps.label import AppBundle, app_bundles
from monai_reg_ext.data.bundle_dir import bundle_dir, bundle_names


def test_an_app_has_the_packages_bundles_and_its_own(tmp_path):
    copy_bundle(bundle_dir("convex_adam"), tmp_path / "model" / "mine")

    bundles = app_bundles(tmp_path)

    assert sorted(bundles) == sorted(["mine", *bundle_names()])
    assert bundles["mine"].folder == tmp_path / "model" / "mine"
    assert bundles["convex_adam"].folder == bundle_dir("convex_adam")


def test_only_the_bundles_that_are_named_are_taken_and_others_refused(tmp_path):
    assert list(app_bundles(tmp_path, "gauss_newton, convex_adam")) == ["gauss_newton", "convex_adam"]
    with pytest.raises(ValueError, match=r"no bundle convexadam: there are convex_adam, .*Correct --conf models"):
        app_bundles(tmp_path, "convexadam")


def test_a_bundle_is_complete_when_its_weights_are_there(tmp_path):
    folder = copy_bundle(bundle_dir("convex_adam"), tmp_path / "model" / "mine")
    bundle = AppBundle("mine", tmp_path)

    assert bundle.is_complete
    (folder / "models" / "model.pt").unlink()
    assert not bundle.is_complete


def test_only_what_learns_from_label_maps_is_trained(tmp_path):
    assert [name for name, bundle in app_bundles(tmp_path).items() if bundle.is_trainable] == [
        "fused_convex",
        "gauss_newton",
        "pdd_net",
    ]


def test_settings_are_the_configs_that_change_how_it_registers(tmp_path):
    assert "same_modality" in AppBundle("convex_adam", tmp_path).settings
    for bundle in app_bundles(tmp_path).values():
        assert not {"inference", "evaluate", "metadata", "train"} & set(bundle.settings)
        assert not any(name.startswith("multi_gpu_") for name in bundle.settings)


def test_new_weights_go_into_a_copy_that_knows_their_labels_and_takes_the_place_of_the_packages(tmp_path):
    bundle, original = AppBundle("fused_convex", tmp_path), bundle_dir("fused_convex")
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    torch.save({"a": torch.ones(2)}, tmp_path / "new.pt")

    bundle.take_weights(tmp_path / "new.pt", [0, 3, 9])

    assert bundle.folder == tmp_path / "model" / "fused_convex"
    assert torch.equal(torch.load(bundle.weights)["a"], torch.ones(2))
    assert bundle.config("inference") == json.loads((original / "configs" / "inference.json").read_text()) | {
        "labels": [0, 3, 9]
    }
    assert isinstance(bundle.config("train")["labels"], str)  # an expression stays one
    assert {path: path.read_bytes() for path in original.rglob("*") if path.is_file()} == before


def test_weights_trained_again_replace_the_earlier_ones(tmp_path):
    bundle = AppBundle("pdd_net", tmp_path)
    for value in (1.0, 2.0):
        torch.save({"a": torch.tensor(value)}, tmp_path / "new.pt")
        bundle.take_weights(tmp_path / "new.pt", [0, 1])

    assert torch.load(bundle.weights)["a"] == 2
