# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.label.app_bundle import AppBundle
from monai_reg_ext.apps.label.plain_values import first_choice, plain_value

__all__ = ["FUSIONS", "OUTPUT_KINDS", "RegistrationRequest", "displayable_configs"]

OUTPUT_KINDS = ("warped_label", "warped", "ddf", "field")  # the first is the default, and what viewers show
FUSIONS = ("local", "majority")
SUFFIXES = {"warped_label": (".nii.gz", ".nii", ".nrrd"), "warped": (".nii.gz", ".nii", ".nrrd")}
SUFFIXES |= {"ddf": (".nii.gz", ".nii"), "field": (".nii.gz", ".nii", ".nrrd")}


@dataclass(frozen=True)
class RegistrationRequest:
    """What one request to the server asks for, checked.

    Args:
        fixed: path of the fixed image.
        moving: one or several subjects with ``id``, ``image`` and, for labels, ``label``.
        output_kind: one of ``OUTPUT_KINDS``.
        fusion: one of ``FUSIONS``, how label maps of several subjects become one.
        suffix: of the result's file.
        settings: names of the bundle's configs.
        overrides: values by config id.
        device: where the network works.
    """

    fixed: str
    moving: Sequence[Mapping[str, str]]
    output_kind: str = OUTPUT_KINDS[0]
    fusion: str = FUSIONS[0]
    suffix: str = ".nii.gz"
    settings: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    @classmethod
    def parse(cls, request: Mapping[str, Any], bundle: AppBundle) -> RegistrationRequest:
        """From what MONAI Label hands over, with ``moving_files`` as :py:func:`moving_files` gives them.

        Raises:
            ValueError: when a value is not one of those that there are.
        """
        kind = _one_of("output_kind", request, OUTPUT_KINDS)
        if kind != "warped_label" and len(request["moving_files"]) > 1:
            raise ValueError(f"several moving images are fused as label maps; {kind} needs a single one.")
        suffix = f".{request.get('result_extension') or SUFFIXES[kind][0]}".replace("..", ".").replace(".seg", "")
        if suffix not in SUFFIXES[kind]:
            raise ValueError(f"result_extension of {kind} must be one of {', '.join(SUFFIXES[kind])}, got {suffix!r}.")
        settings = file_list(first_choice(request.get("settings")) or None)
        unknown = [name for name in settings if name not in bundle.settings]
        if unknown:
            raise ValueError(f"{bundle.name} has no settings {unknown[0]!r}; it has {', '.join(bundle.settings)}.")
        overrides = {name: plain_value(name, request[name]) for name in displayable_configs(bundle) if name in request}
        return cls(
            fixed=request["image"],
            moving=request["moving_files"],
            output_kind=kind,
            fusion=_one_of("fusion", request, FUSIONS),
            suffix=suffix,
            settings=settings,
            overrides=overrides,
            device=request.get("device"),
        )


def displayable_configs(bundle: AppBundle) -> dict[str, Any]:
    """The ids that a bundle offers to users of a viewer, with their values."""
    config = bundle.config("inference")
    return {name: config.get(name) for name in config.get("displayable_configs", {})}


def _one_of(name: str, request: Mapping[str, Any], known: Sequence[str]) -> str:
    value = first_choice(request.get(name)) or known[0]
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    return value
