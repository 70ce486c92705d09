# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.data import phantom_pair

SIZE = (40, 34, 28)
SPACING = (5.0, 5.0, 7.0)


class FolderStore:
    """What the app needs of a datastore of MONAI Label, on a folder laid out as its local one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_images(self) -> list[str]:
        return [path.name.removesuffix(".nii.gz") for path in self.folder.glob("*.nii.gz")]

    def get_image_uri(self, image_id: str) -> str:
        return str(self.folder / f"{image_id}.nii.gz") if image_id in self.list_images() else ""

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return image_id if (self.folder / "labels" / tag / f"{image_id}.nii.gz").is_file() else ""

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(self.folder / "labels" / label_tag / f"{label_id}.nii.gz")


@pytest.fixture(scope="session")
def studies(tmp_path_factory) -> Path:
    """Images case_1 to case_5, of which all but case_5 have final labels."""
    folder = tmp_path_factory.mktemp("studies")
    for seed, (first, second) in enumerate((("case_1", "case_2"), ("case_3", "case_4"), ("case_5", None))):
        pair = phantom_pair(SIZE, SPACING, max_displacement_mm=12, seed=seed)
        for name, side in ((first, "fixed"), (second, "moving")):
            if name is not None:
                write_volume(pair[side], folder / f"{name}.nii.gz")
                if name != "case_5":
                    write_volume(pair[f"{side}_label"], folder / "labels" / "final" / f"{name}.nii.gz")
    return folder


@pytest.fixture
def datastore(studies) -> FolderStore:
    return FolderStore(studies)
