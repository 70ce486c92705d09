# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from monai_reg_ext.apps.label.app_bundle import AppBundle
from monai_reg_ext.apps.label.plain_values import plain_value
from monai_reg_ext.data.pairing import IMAGE_SUFFIX
from monai_reg_ext.transforms.read_volume import read_volume

__all__ = ["train_on_subjects", "training_options", "write_training_task"]

LOGGER = logging.getLogger(__name__)
RESULTS = "training"  # in the app's folder
EXPRESSIONS = ("tensorboard", "val_cases")  # what may be set though configs compute it


def train_on_subjects(
    bundle: AppBundle, subjects: Sequence[Mapping[str, str]], app_dir: str | Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Train a bundle on labelled images, whose pairs it forms by itself, and make the weights the app's own ones.

    Args:
        bundle: a trainable one.
        subjects: paths, ``image`` and ``label`` each.
        app_dir: folder of the app; ``training/<bundle>_<time>`` in it keeps what the training writes.
        options: ids of the bundle's ``train.json`` and their values, and ``device``.

    Returns:
        ``weights``, where they are, and ``labels``, the values that they know.

    Raises:
        ValueError: when the bundle cannot be trained, an option is no plain value, or the images are too few or
            wrong.
    """
    if not bundle.is_trainable:
        raise ValueError(f"{bundle.name} has no training that makes weights.")
    overrides = _overrides(bundle, options)
    output_dir = Path(app_dir) / RESULTS / f"{bundle.name}_{datetime.now():%Y%m%d_%H%M%S_%f}"
    task, labels = write_training_task(subjects, output_dir / "data")
    try:
        workflow = ConfigWorkflow(
            config_file=str(bundle.folder / "configs" / "train.json"),
            meta_file=str(bundle.folder / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            bundle_root=str(bundle.folder),
            dataset_dir=str(task),
            output_dir=str(output_dir),
            **overrides,
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except SystemExit as end:  # how a bundle tells what is wrong with its input
        raise ValueError(str(end).removeprefix("error: ")) from None
    bundle.take_weights(output_dir / "model.pt", labels)
    LOGGER.info("%s: trained on %d images, weights in %s", bundle.name, len(subjects), bundle.weights)
    return {"weights": str(bundle.weights), "labels": labels}


def training_options(bundle: AppBundle) -> dict[str, Any]:
    """What of a training may be set by a request, with its values: the plain ones of the config's top level."""
    options = {}
    for name, value in bundle.config("train").items():
        with contextlib.suppress(ValueError):
            options[name] = plain_value(name, value)
    return options


def write_training_task(subjects: Sequence[Mapping[str, str]], folder: Path) -> tuple[Path, list[int]]:
    """Labelled images as a Learn2Reg task of links to them, and the label values they have, background first.

    Every image is a case of its own, whatever numbers its name ends with.
    """
    entries, labels = [], {0}
    for number, subject in enumerate(subjects):
        entry = {}
        for key in ("image", "label"):
            source = Path(subject[key]).resolve()
            link = folder / f"{key}sTr" / f"Datastore_{number:04d}_0000{IMAGE_SUFFIX.search(source.name)[0]}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
            entry[key] = str(link.relative_to(folder))
        labels.update(int(value) for value in read_volume(Path(subject["label"]), subject["label"]).unique())
        entries.append(entry)
    names = {str(label): f"label {label}" for label in sorted(labels)}
    path = folder / "Datastore_dataset.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": "Datastore", "labels": {"0": names}, "training": entries}), encoding="utf-8")
    return path, sorted(labels)


def _overrides(bundle: AppBundle, options: Mapping[str, Any]) -> dict[str, Any]:
    known = {*training_options(bundle), *EXPRESSIONS}
    overrides = {name: plain_value(name, value) for name, value in options.items() if name in known}
    if options.get("device"):
        overrides["device"] = f"$torch.device({str(torch.device(options['device']))!r})"
    return overrides
