# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device

from monai_reg_ext.apps.label.app_bundle import AppBundle
from monai_reg_ext.apps.label.datastore_training import train_on_subjects, training_options

__all__ = ["RegistrationTrainTask"]


class RegistrationTrainTask(TrainTask):
    """Trains a bundle on the datastore's images that have a final label; see :py:func:`train_on_subjects`.

    Args:
        bundle: a trainable one.
        app_dir: folder of the app, which gets the weights.
    """

    def __init__(self, bundle: AppBundle, app_dir: str | Path) -> None:
        super().__init__(bundle.config("metadata").get("description", ""))
        self.bundle = bundle
        self.app_dir = Path(app_dir)

    def config(self) -> dict[str, Any]:
        options = training_options(self.bundle)
        return {"device": device_list(), "max_epochs": options.pop("epochs"), **options}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        options = {**request, "device": name_to_device(request.get("device"))}
        if "max_epochs" in request:
            options["epochs"] = request["max_epochs"]
        return train_on_subjects(self.bundle, datastore.datalist(), self.app_dir, options)
