# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from monai_reg_ext.apps.label.plain_values import first_choice

__all__ = ["FINAL", "NotInDatastoreError", "atlas_ids", "image_file", "moving_files"]

FINAL = "final"  # MONAI Label's tag of labels that a person has approved


class Datastore(Protocol):
    """What is needed of MONAI Label's datastores."""

    def get_image_uri(self, image_id: str) -> str: ...

    def get_label_by_image_id(self, image_id: str, tag: str) -> str: ...

    def get_label_uri(self, label_id: str, label_tag: str) -> str: ...

    def list_images(self) -> list[str]: ...


class NotInDatastoreError(LookupError):
    """An image or a label was asked for that the datastore does not have."""


def atlas_ids(moving: str | list[str] | None) -> list[str]:
    """Ids of the moving images that a request names, separated by commas or as a list."""
    names = moving.split(",") if isinstance(moving, str) else moving or []
    return [name.strip() for name in names if name.strip()]


def image_file(datastore: Datastore, image_id: str, what: str) -> str:
    """Path of an image.

    Raises:
        NotInDatastoreError: when there is none of this id.
    """
    path = datastore.get_image_uri(image_id) if image_id in datastore.list_images() else ""
    if not path:
        some = ", ".join(sorted(datastore.list_images())[:5])
        raise NotInDatastoreError(
            f"no {what} image {image_id!r} in the datastore; its ids are like {some or '(none)'}."
        )
    return path


def moving_files(datastore: Datastore, request: Mapping[str, Any], needs_labels: bool) -> list[dict[str, str]]:
    """The moving images of a request, ``id``, ``image`` and where there is one ``label``, as paths.

    Args:
        datastore: where they are.
        request: with ``moving`` (see :py:func:`atlas_ids`) and ``moving_tag``, the tag of their labels.
        needs_labels: whether all must have a label.

    Raises:
        ValueError: when the request names none.
        NotInDatastoreError: when there is no such image, or not its label.
    """
    ids, tag = atlas_ids(request.get("moving")), first_choice(request.get("moving_tag")) or FINAL
    if not ids:
        raise ValueError(
            "a registration needs a moving image: give its id as the parameter 'moving', or start the server with "
            "--conf atlas ID."
        )
    subjects = []
    for image_id in ids:
        subject = {"id": image_id, "image": image_file(datastore, image_id, "moving")}
        label_id = datastore.get_label_by_image_id(image_id, tag)
        if label_id:
            subject["label"] = datastore.get_label_uri(label_id, tag)
        elif needs_labels:
            raise NotInDatastoreError(
                f"the moving image {image_id!r} has no label with the tag {tag!r}, so there is none to warp. Label it, "
                "name another tag as 'moving_tag', or ask for 'output_kind' warped, ddf or field."
            )
        subjects.append(subject)
    return subjects
