# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from monai_reg_ext.apps.label.app_bundle import AppBundle
from monai_reg_ext.apps.label.registration_request import RegistrationRequest
from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.metrics import compute_folding_percent, compute_sdlogj
from monai_reg_ext.networks.layers import fuse_labels, local_agreement
from monai_reg_ext.transforms import LoadPaird, RegisterPaird, SpatialDisplacement, write_transform

__all__ = ["RegistrationService"]

# one registration at a time in this process: each takes all cores and much memory
ALONE = threading.Lock()
LEAST_SIZE = 5  # voxels per axis, below which a field has no interior to be measured in


class RegistrationService:
    """Answers requests by a bundle: registers, fuses, and writes the result to a file.

    Args:
        bundle: the method. It is built when it is first needed, and again when its weights have changed.
    """

    def __init__(self, bundle: AppBundle) -> None:
        self.bundle = bundle
        self._built: tuple[Any, RegisterPaird] | None = None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Path of the result's file, a temporary one that becomes the caller's, and facts about it.

        Args:
            request: see :py:meth:`RegistrationRequest.parse`.

        Raises:
            ValueError, OSError, TypeError: when the request, the images or the bundle are not as they should be.
        """
        begin = time.monotonic()
        if not self.bundle.is_complete:
            raise ValueError(
                f"{self.bundle.name} has no weights yet, so it is not served. Train it, or put them into a copy of the "
                f"bundle in the app's folder, as model/{self.bundle.name}/models/model.pt."
            )
        wanted = RegistrationRequest.parse(request, self.bundle)
        with ALONE:
            results = {subject["id"]: self._register(wanted, subject) for subject in wanted.moving}
            result = _fused(wanted, list(results.values()))
        path = _write(result, wanted)
        total = round(time.monotonic() - begin, 2)
        facts = {"output_kind": wanted.output_kind, "moving": {name: _measures(r) for name, r in results.items()}}
        return path, facts | {"latencies": {"total": total}}

    def _register(self, wanted: RegistrationRequest, subject: Mapping[str, str]) -> dict[str, MetaTensor]:
        pair = {"pair": subject["id"], "fixed": wanted.fixed, "moving": subject["image"]}
        if "label" in subject:
            pair["moving_label"] = subject["label"]
        try:
            return self._method(wanted)(LoadPaird()(pair))
        except SystemExit as end:  # how a bundle refuses weights that are not its network's
            raise ValueError(str(end).removeprefix("error: ")) from None

    def _method(self, wanted: RegistrationRequest) -> RegisterPaird:
        state = (self.bundle.weights, self.bundle.weights.stat().st_mtime_ns)
        key = (*state, tuple(wanted.settings), repr(wanted.overrides), wanted.device)
        if self._built is None or self._built[0] != key:
            method = RegisterPaird(
                keys=("moving", "moving_label"),
                method=self.bundle.folder,
                mode=("bilinear", "label"),
                settings=wanted.settings,
                device=wanted.device,
                allow_missing_keys=True,
                **wanted.overrides,
            )
            self._built = key, method
        return self._built[1]


def _fused(wanted: RegistrationRequest, results: list[dict[str, MetaTensor]]) -> MetaTensor:
    """What the request asks for, on the fixed grid."""
    first = results[0]
    if wanted.output_kind == "warped":
        return first["moving"]
    if wanted.output_kind != "warped_label":
        return first["ddf"]
    labels = torch.cat([result["moving_label"].as_tensor() for result in results])
    weights = None
    if wanted.fusion == "local" and len(results) > 1:
        warped = torch.cat([result["moving"].as_tensor() for result in results])
        weights = local_agreement(first["fixed"].as_tensor()[0], warped)
    return MetaTensor(fuse_labels(labels, weights)[None], affine=first["fixed"].affine)


def _write(result: MetaTensor, wanted: RegistrationRequest) -> str:
    with tempfile.NamedTemporaryFile(prefix=f"{wanted.output_kind}_", suffix=wanted.suffix, delete=False) as file:
        path = Path(file.name)
    try:
        if wanted.output_kind in ("ddf", "field"):
            form = "learn2reg" if wanted.output_kind == "ddf" else "itk"
            write_transform(SpatialDisplacement.from_metatensor(result), path, form)
        else:
            write_volume(result, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return str(path)


def _measures(result: Mapping[str, MetaTensor]) -> dict[str, float]:
    ddf = result["ddf"].as_tensor()[None]
    if min(ddf.shape[2:]) < LEAST_SIZE:
        return {}
    return {
        "sdlogj": round(compute_sdlogj(ddf).item(), 4),
        "folding_percent": round(compute_folding_percent(ddf).item(), 4),
    }
