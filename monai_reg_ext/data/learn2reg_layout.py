# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Where a Learn2Reg task keeps what: names of files and folders, and the JSON's form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from monai_reg_ext.data.pairing import file_stem

__all__ = ["case_of", "companion_path", "entries_of", "find_json", "pairing_code", "read_json", "subject_entries"]

FOLDERS = {"label": "labels", "mask": "masks", "landmarks": "landmarks", "keypoints": "keypoints"}
POINT_KINDS = ("landmarks", "keypoints")
CASE_AND_MODALITY = re.compile(r"(?P<case>.+)_(?P<modality>\d{4})")  # <Task>_<case>_<modality>


def find_json(dataset_dir: Path) -> Path:
    """The one ``*_dataset.json`` of a folder, or the JSON file itself when that is given."""
    if dataset_dir.is_file():
        return dataset_dir
    if not dataset_dir.is_dir():
        raise FileNotFoundError(f"dataset_dir must be a Learn2Reg folder or its JSON; {dataset_dir} does not exist.")
    found = sorted(dataset_dir.glob("*_dataset.json"))
    if not found:
        raise FileNotFoundError(f"{dataset_dir} holds no <Task>_dataset.json, which lists the pairs of a task.")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{dataset_dir} holds several tasks ({names}); give the path of one of these files.")
    return found[0]


def read_json(path: Path) -> dict[str, Any]:
    """Content of a dataset JSON; ``ValueError`` when it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also the one of undecodable bytes
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object with lists of images, got a {type(content).__name__}.")
    return content


def entries_of(content: dict[str, Any], split: str, json_path: Path) -> list[Any]:
    """Entries of a split; ``ValueError`` when it is absent, empty, or an entry lacks what it needs."""
    if split not in content:
        raise ValueError(f"{json_path} lacks the key {split!r}; it has {sorted(content)}.")
    entries = content[split]
    if not isinstance(entries, list) or not entries:
        filled = {key: len(value) for key, value in content.items() if isinstance(value, list) and value}
        raise ValueError(f"{split!r} of {json_path} must be a list with entries; the filled lists are {filled}.")
    needed = ("image",) if split == "training" else ("fixed", "moving")
    for index, entry in enumerate(entries):
        _check_entry(entry, needed, f"{split}[{index}] of {json_path}")
    return entries


def subject_entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``training`` and ``test`` that name more than an image: labels, masks."""
    lists = [content[key] for key in ("training", "test") if isinstance(content.get(key), list)]
    return [e for entries in lists for e in entries if isinstance(e, dict) and isinstance(e.get("image"), str)]


def _check_entry(entry: Any, needed: tuple[str, ...], where: str) -> None:
    if isinstance(entry, str) and needed == ("image",):
        return
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in needed):
        raise ValueError(f"{where} needs a path for {' and '.join(needed)}, got {entry!r}.")


def case_of(image: str | Path) -> str:
    """Task and case of an image: ``LungCT_0001`` for ``imagesTr/LungCT_0001_0000.nii.gz``."""
    stem = file_stem(image)
    match = CASE_AND_MODALITY.fullmatch(stem)
    return match["case"] if match else stem


def pairing_code(fixed: Path, moving: Path) -> str:
    """Code of a pairing in folder names such as ``keypoints01Tr``: both modalities, the smaller first."""
    matches = [CASE_AND_MODALITY.fullmatch(file_stem(image)) for image in (fixed, moving)]
    return "".join(map(str, sorted(int(match["modality"]) for match in matches if match)))


def companion_path(image: Path, kind: str, pairing: str = "") -> Path:
    """Where the label, mask, landmarks or keypoints of an image lie, whether or not the file exists.

    ``imagesTr/x.nii.gz`` gives ``labelsTr/x.nii.gz``, ``keypointsTr/x.csv`` or, for a pairing, ``keypoints01Tr/x.csv``.
    """
    subset = image.parent.name.removeprefix("images")
    name = f"{file_stem(image)}.csv" if kind in POINT_KINDS else image.name
    return image.parent.parent / f"{FOLDERS[kind]}{pairing}{subset}" / name
