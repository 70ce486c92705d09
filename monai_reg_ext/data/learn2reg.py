# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from monai_reg_ext.data.learn2reg_layout import (
    POINT_KINDS,
    case_of,
    companion_path,
    entries_of,
    find_json,
    pairing_code,
    read_json,
    subject_entries,
)
from monai_reg_ext.data.pairing import join_subjects

__all__ = ["Learn2RegTask"]

logger = logging.getLogger(__name__)

SPLITS = ("registration_val", "registration_test", "training_paired_images", "training")


class Learn2RegTask:
    """A Learn2Reg data folder, read from its ``<Task>_dataset.json``.

    Labels, masks and points are taken from wherever the task offers them: label maps and masks as ``training`` or
    ``test`` name them or from ``labelsTr`` and ``masksTr`` under the image's name (``...Ts`` for ``imagesTs``), points
    from ``landmarksTr`` or ``keypointsTr``, as ``.csv`` whatever suffix the JSON gives them and only where both images
    have them.

    Args:
        dataset_dir: the folder, with exactly one ``*_dataset.json``, or the JSON file itself.
        image_from: ``"image"``, or ``"label"`` to register the label maps in place of the images, which then need not
            exist.
        point_kinds: which points to take, first come first served.

    Raises:
        FileNotFoundError: when there is no such folder or no JSON in it.
        ValueError: when there are several, when it is not a JSON object, or for an unknown ``image_from`` or kind.
    """

    def __init__(
        self, dataset_dir: str | Path, image_from: str = "image", point_kinds: Sequence[str] = POINT_KINDS
    ) -> None:
        if image_from not in ("image", "label"):
            raise ValueError(f"image_from must be 'image' or 'label', got {image_from!r}.")
        if not set(point_kinds) <= set(POINT_KINDS):
            raise ValueError(f"point_kinds must be among {POINT_KINDS}, got {tuple(point_kinds)}.")
        self.json_path = find_json(Path(dataset_dir).expanduser())
        self.content = read_json(self.json_path)
        self.image_from = image_from
        self.point_kinds = tuple(point_kinds)
        self._named = {self._path(entry["image"]): entry for entry in subject_entries(self.content)}

    def pairs(
        self, split: str = "registration_val", number: int | None = None, seed: int = 0, on_missing: str = "raise"
    ) -> list[dict[str, str]]:
        """The pairs of a split, as dictionaries of paths.

        Args:
            split: ``"registration_val"``, ``"registration_test"``, ``"training_paired_images"``, or ``"training"`` for
                random pairs of different training cases, each pair at most once, its direction random, without points.
                Neither kind of training pair contains a case of validation or test, even where the JSON lists it.
            number: at most so many pairs; by default all of an explicit split, as many as images of ``training``.
            seed: of the random pairs.
            on_missing: ``"raise"`` when a file does not exist; ``"keep"`` logs it and leaves the error to the loading
                of the pair, unless every pair misses a file.

        Returns:
            One dictionary per pair: ``pair``, ``fixed``, ``moving`` and what exists of ``fixed_label moving_label
            fixed_mask moving_mask fixed_points moving_points`` (with ``points_space``, ``"voxel"``).

        Raises:
            ValueError: for an unknown, absent, malformed or empty split.
            FileNotFoundError: for missing files, see ``on_missing``.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
        if on_missing not in ("raise", "keep"):
            raise ValueError(f"on_missing must be 'raise' or 'keep', got {on_missing!r}.")
        if number is not None and number < 1:
            raise ValueError(f"number of pairs must be at least 1, got {number}.")
        pairs = self._random_pairs(number, seed) if split == "training" else self._explicit_pairs(split)[:number]
        self._check_files(pairs, split, keep=on_missing == "keep")
        return pairs

    def subjects(self) -> list[dict[str, str]]:
        """The images of ``training`` whose cases are neither in validation nor in test, for ``RandomPairDataset``.

        Returns:
            One dictionary of paths per image: ``image`` and what exists of ``label`` and ``mask``.

        Raises:
            ValueError: when ``training`` is absent, malformed or empty, or nothing of it is left.
            FileNotFoundError: for missing files.
        """
        subjects = [self._subject(image) for image in self._training_images()]
        self._check_files(subjects, "training", keep=False)
        return subjects

    def _explicit_pairs(self, split: str) -> list[dict[str, str]]:
        entries = entries_of(self.content, split, self.json_path)
        pairs = [(self._path(entry["fixed"]), self._path(entry["moving"])) for entry in entries]
        if split == "training_paired_images":
            held_out = self._held_out_cases()
            pairs = [pair for pair in pairs if held_out.isdisjoint(map(case_of, pair))]
            self._check_left(pairs, split)
        return [
            join_subjects(self._subject(fixed), self._subject(moving)) | self._points(fixed, moving)
            for fixed, moving in pairs
        ]

    def _random_pairs(self, number: int | None, seed: int) -> list[dict[str, str]]:
        images = self._training_images()
        candidates = [pair for pair in combinations(images, 2) if case_of(pair[0]) != case_of(pair[1])]
        self._check_left(candidates, "training")
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(len(candidates))[: number or len(images)]
        swapped = generator.random(len(chosen)) < 0.5
        pairs = [candidates[i][::-1] if swap else candidates[i] for i, swap in zip(chosen, swapped, strict=True)]
        return [join_subjects(self._subject(fixed), self._subject(moving)) for fixed, moving in pairs]

    def _training_images(self) -> list[Path]:
        held_out = self._held_out_cases()
        entries = entries_of(self.content, "training", self.json_path)
        images = [self._path(entry if isinstance(entry, str) else entry["image"]) for entry in entries]
        images = [image for image in images if case_of(image) not in held_out]
        self._check_left(images, "training")
        return images

    def _held_out_cases(self) -> set[str]:
        splits = [split for split in ("registration_val", "registration_test") if self.content.get(split)]
        entries = [entry for split in splits for entry in entries_of(self.content, split, self.json_path)]
        return {case_of(entry[side]) for entry in entries for side in ("fixed", "moving")}

    def _check_left(self, left: Sequence[Any], split: str) -> None:
        if not left:
            raise ValueError(
                f"{split!r} of {self.json_path} leaves no two cases to pair once those of registration_val and "
                "registration_test are taken out."
            )

    def _path(self, entry: str) -> Path:
        return self.json_path.parent / entry

    def _subject(self, image: Path) -> dict[str, str]:
        label, mask = (self._companion(image, kind) for kind in ("label", "mask"))
        if self.image_from == "label":
            image = label = label or companion_path(image, "label")
        subject = {"image": image, "label": label, "mask": mask}
        return {key: str(path) for key, path in subject.items() if path is not None}

    def _companion(self, image: Path, kind: str) -> Path | None:
        """What the JSON names counts even if the file is missing, so that it will be noticed."""
        named = self._named.get(image, {}).get(kind)
        if isinstance(named, str):
            return self._path(named)
        path = companion_path(image, kind)
        return path if path.is_file() else None

    def _points(self, fixed: Path, moving: Path) -> dict[str, str]:
        """Corresponding points of the first kind, and from the first folder, that holds both files."""
        for kind in self.point_kinds:
            for pairing in (pairing_code(fixed, moving), ""):
                files = [companion_path(image, kind, pairing) for image in (fixed, moving)]
                if all(file.is_file() for file in files):
                    return {"fixed_points": str(files[0]), "moving_points": str(files[1]), "points_space": "voxel"}
        return {}

    def _check_files(self, items: list[dict[str, str]], split: str, keep: bool) -> None:
        missing = [[path for path in _paths(item) if not Path(path).is_file()] for item in items]
        incomplete = sum(map(bool, missing))
        if not incomplete:
            return
        files = list(dict.fromkeys(path for paths in missing for path in paths))
        message = (
            f"{self.json_path}: {incomplete} of the {len(items)} items of {split!r} name files that do not exist, "
            f"{len(files)} in all: {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}."
        )
        if keep and incomplete < len(items):
            logger.warning(message)
            return
        hint = " Label maps can be registered without images: image_from='label'." if self.image_from == "image" else ""
        raise FileNotFoundError(message + hint)


def _paths(item: dict[str, str]) -> list[str]:
    return [value for key, value in item.items() if key not in ("pair", "points_space")]
