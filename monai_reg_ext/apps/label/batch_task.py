# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from monai_reg_ext.apps.label.datastore_files import atlas_ids
from monai_reg_ext.data.error_line import error_line

__all__ = ["AtlasBatchTask"]

LOGGER = logging.getLogger(__name__)


class AtlasBatchTask(BatchInferTask):
    """Registers the atlases of a request to all other images of the datastore and stores the label maps.

    An image that fails does not stop the others; at the end its error is that of the batch.

    Args:
        atlas: id of the moving image, or several, when a request names none.
    """

    def __init__(self, atlas: str) -> None:
        self.atlas = atlas

    def get_images(self, request: Mapping[str, Any], datastore: Datastore) -> list[str]:
        atlases = atlas_ids(request.get("moving") or self.atlas)
        return [image for image in super().get_images(request, datastore) if image not in atlases]

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Callable) -> dict[str, Any]:
        images = sorted(self.get_images(request, datastore))[: request.get("max_batch_size") or None]
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL
        results, errors = {}, {}
        for number, image in enumerate(images, start=1):
            try:
                result = infer({**request, "image": image, "save_label": True, "label_tag": tag}, datastore)
                Path(result.pop("file")).unlink()
                results[image] = result
            except Exception as error:
                errors[image] = getattr(error, "detail", None) or error_line(error)  # the former of an HTTP status
            LOGGER.info("%d of %d: %s: %s", number, len(images), image, errors.get(image, f"stored as {tag}"))
        if errors:
            reasons = "; ".join(f"{image}: {error}" for image, error in errors.items())
            raise RuntimeError(f"{len(errors)} of {len(images)} images failed, the others are stored. {reasons}")
        return results
