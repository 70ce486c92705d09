# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from monai_reg_ext.apps import zoo_checks
from monai_reg_ext.apps.zoo_checks import zoo_problems

pytest.importorskip("jsonschema")

# put together here, since no text of the project holds such a path
HOMES = [
    "/".join(["", "home", "someone", "data"]),
    "/".join(["", "Users", "someone"]),
    "\\".join(["C:", "Users", "someone"]),
]


@pytest.fixture
def bundle(bundles_dir, tmp_path) -> Path:
    """A copy of a bundle to spoil."""
    return Path(shutil.copytree(bundles_dir / "convex_adam", tmp_path / "my_method"))


def change(bundle: Path, **changes) -> None:
    """Other values in the metadata; ``None`` takes one away."""
    path = bundle / "configs" / "metadata.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}, indent=4))


def test_a_sound_bundle_has_no_problems_and_what_runs_left_there_is_none(bundle):
    (bundle / "eval").mkdir(exist_ok=True)
    (bundle / "eval" / "settings.json").write_text(json.dumps({"output": HOMES[0]}))

    assert zoo_problems(bundle) == []


@pytest.mark.parametrize(
    "name", ["LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt"]
)
def test_a_file_that_is_missing_is_named_and_nothing_else(bundle, name):
    (bundle / name).unlink()

    assert zoo_problems(bundle) == [f"{name} is missing."]


def test_weights_that_are_to_be_downloaded_are_not_missing(bundle):
    (bundle / "models" / "model.pt").unlink()
    (bundle / "large_files.yml").write_text(
        "large_files:\n- path: models/model.pt\n  url: https://example.org/model.pt\n"
    )

    assert zoo_problems(bundle) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "0.2.0"}, "no entry for version '0.2.0'"),
        ({"changelog": None}, "'changelog' is a required property"),
        ({"schema": None}, "'schema' is a required property"),
        ({"references": "a paper"}, "references 'a paper' is not of type 'array'"),
        ({"numpy_version": ">=2.0"}, "numpy_version '>=2.0' is no exact version"),
        ({"required_packages_version": {"nibabel": "5"}}, "nibabel '5' is no exact version"),
        ({"eval_metrics": {"Hippocampus_dice": 99.875}}, "does not hold 99.875"),
        ({"data_source": "hospital, see docs/data_license.txt"}, "docs/data_license.txt, which is missing"),
    ],
)
def test_metadata_that_the_zoo_would_refuse_are_told(bundle, changes, words):
    change(bundle, **changes)

    problems = zoo_problems(bundle)

    assert any(words in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


def test_the_readme_needs_the_templates_headings_and_a_word_on_torchscript(bundle):
    readme = bundle / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("## Limitations", "## Shortcomings").replace("TorchScript", "Script"))

    heading, torchscript = zoo_problems(bundle)

    assert "'Limitations'" in heading
    assert "TorchScript" in torchscript


def test_json_is_indented_by_four(bundle):
    path = bundle / "configs" / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    (bundle / "configs" / "broken.json").write_text("{")

    broken, indent = zoo_problems(bundle)

    assert "configs/broken.json is no JSON" in broken
    assert "configs/inference.json is not written with an indent of 4" in indent


@pytest.mark.parametrize("path", HOMES)
def test_personal_paths_are_found(bundle, path):
    (bundle / "configs" / "mine.json").write_text(json.dumps({"dataset_dir": path}, indent=4))

    (problem,) = zoo_problems(bundle)

    assert problem.startswith("configs/mine.json holds the personal path")


def test_a_second_model_is_refused(bundle):
    (bundle / "models" / "last.pt").write_bytes(b"")

    (problem,) = zoo_problems(bundle)

    assert "models/ holds last.pt, model.pt" in problem


@pytest.mark.parametrize(
    ("name", "words"),
    [("my-method", "letters, digits"), ("lung_vessels", "'_v'"), ("lesion_detection", "MONAI Label guesses")],
)
def test_names_that_monai_reads_otherwise_are_refused(bundle, name, words):
    (problem,) = zoo_problems(bundle.rename(bundle.with_name(name)))

    assert words in problem


def test_a_text_beyond_the_limit_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(zoo_checks, "LARGEST", (bundle / "LICENSE").stat().st_size)
    (bundle / "docs" / "long.txt").write_text("a" * (zoo_checks.LARGEST + 1))

    (problem,) = zoo_problems(bundle)

    assert problem.startswith("docs/long.txt is a text of more than")


def test_without_jsonschema_the_error_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setattr(zoo_checks, "HAS_JSONSCHEMA", False)

    with pytest.raises(ModuleNotFoundError, match="monai-reg-ext\\[bundle\\]"):
        zoo_problems(bundle)
