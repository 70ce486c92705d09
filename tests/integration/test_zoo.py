# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""What MONAI's model zoo verifies of every bundle before it takes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from monai.bundle import load, verify_metadata, verify_net_in_out

from monai_reg_ext.apps.zoo_checks import METADATA_SCHEMA, zoo_problems

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1].name for path in (REPOSITORY / "bundles").glob("*/configs/metadata.json"))


@pytest.mark.parametrize("name", BUNDLES)
def test_the_zoo_has_no_objections_but_to_weights_that_are_not_there_yet(bundles_dir, name):
    bundle = bundles_dir / name
    untrained = [] if (bundle / "models" / "model.pt").is_file() else ["models/model.pt is missing."]

    assert zoo_problems(bundle) == untrained


@pytest.mark.parametrize("name", BUNDLES)
def test_the_metadata_keep_the_schema(bundles_dir, name):
    verify_metadata(meta_file=str(bundles_dir / name / "configs" / "metadata.json"), filepath=str(METADATA_SCHEMA))


@pytest.mark.parametrize("name", BUNDLES)
def test_the_network_takes_and_gives_what_the_metadata_say(bundles_dir, name):
    configs = bundles_dir / name / "configs"

    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.json"))


@pytest.mark.parametrize("name", BUNDLES)
def test_the_zoo_installs_the_versions_that_were_tested_together(bundles_dir, name):
    metadata = json.loads((bundles_dir / name / "configs" / "metadata.json").read_text())
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    pins = {package: metadata[f"{word}_version"] for package, word in (("torch", "pytorch"), ("monai", "monai"))}
    pins |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    pins.pop("monai-reg-ext")

    assert pins == {package: tested[package] for package in pins}


def test_monai_loads_a_bundles_network_with_its_weights(bundles_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    network = load("fused_convex", bundle_dir=bundles_dir, workflow_type="inference")

    weights = torch.load(bundles_dir / "fused_convex" / "models" / "model.pt", weights_only=True)
    state = network.state_dict()
    assert state
    assert all(torch.equal(value.cpu(), weights[key]) for key, value in state.items())
