# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from monai_reg_ext.apps.label.app_bundle import app_bundles
from monai_reg_ext.apps.label.batch_task import AtlasBatchTask
from monai_reg_ext.apps.label.datastore_files import NotInDatastoreError, image_file, moving_files
from monai_reg_ext.apps.label.infer_task import RegistrationInferTask
from monai_reg_ext.apps.label.plain_values import first_choice
from monai_reg_ext.apps.label.registration_request import OUTPUT_KINDS
from monai_reg_ext.apps.label.train_task import RegistrationTrainTask
from monai_reg_ext.data.error_line import error_line

__all__ = ["RegistrationApp"]

LOGGER = logging.getLogger(__name__)
NOT_FOUND, WRONG, FAILED = 404, 400, 500


class RegistrationApp(MONAILabelApp):
    """Serves every bundle that has weights; labels of atlases become labels of the datastore's other images.

    Args:
        app_dir: folder of the app; bundles in its folder ``model`` go before the package's.
        studies: the datastore.
        conf: ``models``, only these bundles, with commas; ``atlas``, id of the moving image, or several, when a request
            names none; ``labels``, names of the label values 1, 2, ..., with commas.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.bundles = app_bundles(app_dir, conf.get("models", ""))
        self.atlas = conf.get("atlas", "")
        incomplete = [bundle.name for bundle in self.bundles.values() if not bundle.is_complete]
        without = f" Without weights, hence not served until trained: {', '.join(incomplete)}." if incomplete else ""
        if incomplete:
            LOGGER.warning(without.strip())
        names = [name.strip() for name in conf.get("labels", "").split(",") if name.strip()]
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="monai_reg_ext",
            description=f"Deformable registration: the labels of an atlas, warped onto the image.{without}",
            labels={name: value for value, name in enumerate(names, start=1)},
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {name: RegistrationInferTask(bundle, self.atlas, self.labels) for name, bundle in self.bundles.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        trainable = {name: bundle for name, bundle in self.bundles.items() if bundle.is_trainable}
        return {name: RegistrationTrainTask(bundle, self.app_dir) for name, bundle in trainable.items()}

    def init_batch_infer(self) -> AtlasBatchTask:
        return AtlasBatchTask(self.atlas)

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """As MONAI Label's, with ``moving`` (ids) beside ``image``; what is wrong becomes a status and one line."""
        datastore = datastore or self.datastore()
        if request.get("model") not in self.bundles:
            raise HTTPException(NOT_FOUND, f"no model {request.get('model')!r}: there are {', '.join(self.bundles)}.")
        try:
            return super().infer(self._with_files(request, datastore), datastore)
        except NotInDatastoreError as error:
            raise HTTPException(NOT_FOUND, str(error)) from None
        except (ValueError, OSError, TypeError) as error:
            raise HTTPException(WRONG, error_line(error)) from None
        except Exception as error:
            LOGGER.exception("registration failed")
            raise HTTPException(FAILED, error_line(error)) from None

    def _with_files(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        request = {**request, "moving": request.get("moving") or self.atlas}
        kind = first_choice(request.get("output_kind")) or OUTPUT_KINDS[0]
        if request.get("save_label") and kind != OUTPUT_KINDS[0]:
            raise ValueError(f"save_label stores label maps, not {kind}. Ask for one of both.")
        if not _is_uploaded(request):
            image_file(datastore, request["image"], "fixed")
        return request | {"moving_files": moving_files(datastore, request, needs_labels=kind == OUTPUT_KINDS[0])}


def _is_uploaded(request: Mapping[str, Any]) -> bool:
    """Whether MONAI Label has put the image into a file of its own, for this request or for a session."""
    path = Path(request["image"])
    return path.is_file() and ("session" in request or path.parent == Path(tempfile.gettempdir()))
