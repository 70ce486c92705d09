# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

from monai_reg_ext.apps.label.app_bundle import AppBundle
from monai_reg_ext.apps.label.datastore_files import FINAL
from monai_reg_ext.apps.label.registration_request import FUSIONS, OUTPUT_KINDS, displayable_configs
from monai_reg_ext.apps.label.registration_service import RegistrationService

__all__ = ["RegistrationInferTask"]


class RegistrationInferTask(InferTask):
    """A bundle as a model of MONAI Label, listed as a segmentation, so that viewers show its warped label maps.

    Args:
        bundle: the method; while it has no weights it is not listed.
        atlas: id of the moving image, or several, when a request names none.
        labels: names of the label values 1, 2, ...
    """

    def __init__(self, bundle: AppBundle, atlas: str, labels: Mapping[str, int]) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(labels),
            dimension=3,
            description=bundle.config("metadata").get("description", ""),
            config={
                "moving": atlas,
                "moving_tag": FINAL,
                "output_kind": list(OUTPUT_KINDS),
                "fusion": list(FUSIONS),
                "settings": ["", *bundle.settings],
                "device": device_list(),
                **displayable_configs(bundle),
            },
        )
        self.bundle = bundle
        self.service = RegistrationService(bundle)

    def info(self) -> dict[str, Any]:
        return super().info() | {"version": self.bundle.config("metadata").get("version")}

    def is_valid(self) -> bool:
        return self.bundle.is_complete

    def get_path(self, validate: bool = True) -> str | None:
        """Weights that clients may fetch, replace and delete: the app's own ones, not those of the package."""
        is_own = self.bundle.folder == self.bundle.own_folder
        return str(self.bundle.weights) if is_own and (self.is_valid() or not validate) else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        device = name_to_device(request.get("device"))
        path, facts = self.service({**self.config(), **request, "device": device})
        return path, facts | {"label_names": self.labels}
