# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import optional_import

from monai_reg_ext.data.bundle_dir import bundle_files

__all__ = ["LARGEST", "LARGE_FILES", "METADATA", "METADATA_SCHEMA", "large_file_names", "zoo_problems"]

Draft7Validator, HAS_JSONSCHEMA = optional_import("jsonschema", name="Draft7Validator")

LARGEST = 25_000_000  # bytes of a file, the model zoo's limit
LARGE_FILES = "large_files.yml"
MODEL = "models/model.pt"
METADATA = "configs/metadata.json"
METADATA_SCHEMA = Path(__file__).with_name("metadata_schema.json")
REQUIRED = ("LICENSE", METADATA, "configs/inference.json", "docs/README.md", MODEL)
HEADINGS = (
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Preprocessing",
    "Performance",
    "Additional Usage Steps",
    "System Configuration",
    "Limitations",
    "Citation Info",
    "References",
)
# parts of folder names from which MONAI Label guesses another task than registration
OTHER_TASKS = ("deepedit", "deepgrow", "detection", "classification", "segmentation")
TEXTS = {".json", ".md", ".txt", ".conf", ".yml", ".yaml"}
PERSONAL = re.compile(r"/(?:(?:home|users)/\w+|root/)|[A-Z]:\\\\?Users", re.IGNORECASE)
PINS = ("monai_version", "pytorch_version", "numpy_version")


def zoo_problems(bundle: Path) -> list[str]:
    """What MONAI's model zoo would object to in a bundle; what needs no network to run.

    Files, versions and changelog, metadata against the specification's schema, exact pins, layout of JSON, sizes,
    personal paths, README: its headings, and its numbers against the metadata.

    Args:
        bundle: its folder.

    Returns:
        A line per problem, none when all is well.

    Raises:
        ModuleNotFoundError: when ``jsonschema`` is not installed.
    """
    if not HAS_JSONSCHEMA:
        raise ModuleNotFoundError(
            "metadata are checked by jsonschema; install it: pip install 'monai-reg-ext[bundle]'."
        )
    missing = [name for name in REQUIRED if not (bundle / name).is_file() and name not in large_file_names(bundle)]
    problems = [f"{name} is missing." for name in missing]
    checks = [_names, _sizes, _layout, _personal_paths]
    if METADATA not in missing:
        checks += [_schema, _versions]
    if not {METADATA, "docs/README.md"} & set(missing):
        checks.append(_readme)
    return problems + [problem for check in checks for problem in check(bundle)]


def large_file_names(bundle: Path) -> set[str]:
    """Files of a bundle that its ``large_files.yml`` says where to download."""
    if not (bundle / LARGE_FILES).is_file():
        return set()
    return {entry["path"] for entry in ConfigParser.load_config_file(str(bundle / LARGE_FILES))["large_files"]}


def _names(bundle: Path) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", bundle.name):
        yield f"the folder's name {bundle.name!r} is not of letters, digits and single underscores."
    if re.search(r"_v", bundle.name):
        yield f"the folder's name {bundle.name!r} holds '_v', behind which MONAI looks for the version."
    for task in OTHER_TASKS:
        if task in bundle.name:
            yield f"the folder's name {bundle.name!r} holds {task!r}, from which MONAI Label guesses another task."
    weights = sorted(path.name for path in bundle.glob("models/*.pt"))
    if len(weights) > 1:
        yield f"models/ holds {', '.join(weights)}: MONAI Label takes each for a model. Leave model.pt alone there."


def _sizes(bundle: Path) -> Iterator[str]:
    for path in bundle_files(bundle):
        if path.stat().st_size > LARGEST and path.suffix in TEXTS:
            yield f"{path.relative_to(bundle)} is a text of more than {LARGEST // 10**6} MB."


def _layout(bundle: Path) -> Iterator[str]:
    for path in sorted(bundle.glob("configs/*.json")):
        text = path.read_text(encoding="utf-8")
        try:
            pretty = json.dumps(json.loads(text), indent=4, ensure_ascii=False)
        except json.JSONDecodeError as error:
            yield f"configs/{path.name} is no JSON: {error}."
            continue
        if text.rstrip("\n") != pretty:
            yield f"configs/{path.name} is not written with an indent of 4: json.dumps(content, indent=4)."


def _personal_paths(bundle: Path) -> Iterator[str]:
    for path in bundle_files(bundle):
        if path.suffix in TEXTS and (found := PERSONAL.search(path.read_text(encoding="utf-8"))):
            yield f"{path.relative_to(bundle)} holds the personal path {found[0]!r}."


def _schema(bundle: Path) -> Iterator[str]:
    schema = json.loads(METADATA_SCHEMA.read_text(encoding="utf-8"))
    for error in Draft7Validator(schema).iter_errors(_metadata(bundle)):
        yield f"{METADATA}: {'#'.join(map(str, error.absolute_path))} {error.message}."


def _versions(bundle: Path) -> Iterator[str]:
    metadata = _metadata(bundle)
    if metadata.get("version") not in metadata.get("changelog", {}):
        yield f"{METADATA}: the changelog has no entry for version {metadata.get('version')!r}."
    pins = {key: metadata.get(key) for key in PINS} | metadata.get("required_packages_version", {})
    for name, version in pins.items():
        if not re.fullmatch(r"\d+(\.\w+)+", str(version)):
            yield f"{METADATA}: {name} {version!r} is no exact version; it becomes name==version."


def _readme(bundle: Path) -> Iterator[str]:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    found = set(re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE))
    for heading in HEADINGS:
        if heading not in found:
            yield f"docs/README.md lacks the heading {heading!r} of the model zoo's template."
    if "TorchScript" not in text:
        yield "docs/README.md does not say whether the network can be exported as TorchScript."
    told = {float(number) for number in re.findall(r"\d+\.?\d*", text)}
    for name, value in _metadata(bundle).get("eval_metrics", {}).items():
        if value not in told:
            yield f"docs/README.md does not hold {value}, in {METADATA} the value of {name}."
    for named in re.findall(r"docs/[\w.]+", str(_metadata(bundle).get("data_source", ""))):
        if not (bundle / named).is_file():
            yield f"{METADATA}: data_source points to {named}, which is missing."


def _metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / METADATA).read_text(encoding="utf-8"))
