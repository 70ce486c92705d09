# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

import monai_reg_ext
from monai_reg_ext.apps.html_report_settings import versions_now
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data.bundle_dir import bundle_dir
from monai_reg_ext.handlers import RunRecorder

__all__ = ["INPUT_IDS", "BundleRun", "with_absolute_paths"]

PAIR_IDS = tuple(f"{side}_{kind}" for kind in ("label", "mask", "points", "spacing") for side in ("fixed", "moving"))
INPUT_IDS = (*PAIR_IDS, "points_space")
# ids that say what is registered and where it goes, not how
PLACE_IDS = ("bundle_root", "output_dir", "dataset_dir", "split", "image_from", "limit", "fixed", "moving", "pairs")
RECORDER = "monai_reg_ext.handlers.RunRecorder"


class BundleRun:
    """A bundle's inference with settings, run on given pairs as ``python -m monai.bundle run`` does it.

    Args:
        method: name or folder of a bundle, see :py:func:`monai_reg_ext.data.bundle_dir.bundle_dir`.
        settings: configs merged behind ``inference.json``: files, or names of configs of the bundle.
        overrides: values by config id; ``device`` as torch names it.
        evaluate: merge ``evaluate.json`` too, for pairs with labels or points.

    Raises:
        FileNotFoundError: when there is no such bundle or config.
        UsageError: for an id that the configs do not have.
        ValueError: for a device that torch does not know.
    """

    def __init__(
        self,
        method: str | Path = "convex_adam",
        settings: Sequence[str | Path] = (),
        overrides: Mapping[str, Any] | None = None,
        evaluate: bool = False,
    ) -> None:
        self.bundle = bundle_dir(method).resolve()
        self.settings = [str(_find_settings(self.bundle, name)) for name in settings]
        self.evaluate = evaluate
        self.given = dict(overrides or {})
        devices = {"device": _device_expression(self.given["device"])} if "device" in self.given else {}
        self.overrides = {**self.given, **devices}
        parser = ConfigParser()
        parser.read_config(self.configs)
        _check_ids(parser, self.overrides)

    @property
    def method(self) -> str:
        """Name of the bundle's folder."""
        return self.bundle.name

    @property
    def configs(self) -> list[str]:
        """The config files, in the order in which they are merged."""
        files = ["inference.json", *(["evaluate.json"] if self.evaluate else [])]
        return [*(str(self.bundle / "configs" / name) for name in files), *self.settings]

    def arguments(self) -> dict[str, Any]:
        """What makes the same run in another process, as plain values."""
        method, settings = str(self.bundle), self.settings
        return {"method": method, "settings": settings, "overrides": self.given, "evaluate": self.evaluate}

    def description(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """All that decides about the results of a run on some pairs, and what it is run with; plain values.

        ``method``, ``package`` (its version), ``config`` (merged, without places and inputs), ``pairs`` (absolute
        paths), ``versions``.
        """
        config = self._workflow({}).parser.get()
        ways = {key: value for key, value in config.items() if key not in (*PLACE_IDS, *INPUT_IDS, "_meta_")}
        return {
            "method": self.method,
            "package": monai_reg_ext.__version__,
            "config": ways,
            "pairs": [with_absolute_paths(pair) for pair in pairs],
            "versions": versions_now(),
        }

    def run(
        self, pairs: Sequence[Mapping[str, Any]], output_dir: str | Path, recorder: str = RECORDER
    ) -> list[dict[str, Any]]:
        """Register the pairs and write their results under ``output_dir``.

        Args:
            pairs: as :py:func:`monai_reg_ext.data.pair_list` gives them, with ``fixed_spacing`` or ``moving_spacing``.
            output_dir: folder of the run.
            recorder: class that takes the place of the bundle's ``RunRecorder``.

        Returns:
            The rows of the pairs; those of pairs that failed have an ``error``.

        Raises:
            ValueError: when the bundle ends before the first pair, with its message, e.g. when the folder cannot be
                written to, or keeps no rows.
        """
        workflow = self._workflow({"pairs": [dict(pair) for pair in pairs], "output_dir": str(output_dir)})
        position = _set_up_handlers(workflow.parser, recorder)
        message = "the bundle registered nothing."
        try:
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except SystemExit as end:  # also how a bundle tells that pairs failed
            message = str(end).removeprefix("error: ")
        rows = workflow.parser.get_parsed_content(f"handlers#{position}").rows
        if not rows:
            raise ValueError(message)
        return rows

    def _workflow(self, places: Mapping[str, Any]) -> ConfigWorkflow:
        return ConfigWorkflow(
            config_file=self.configs,
            meta_file=str(self.bundle / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(self.bundle),
            **self.overrides,
            **places,
        )


def _find_settings(bundle: Path, name: str | Path) -> Path:
    folder = bundle / "configs"
    for path in (Path(name).expanduser(), folder / name, folder / f"{name}.json"):
        if path.is_file():
            return path.resolve()
    raise FileNotFoundError(f"no settings file {str(name)!r}, neither here nor in {folder}.")


def _device_expression(device: Any) -> str:
    try:
        return f"$torch.device({str(torch.device(device))!r})"
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch knows, e.g. cpu or cuda:0, got {device!r}: {error}") from None


def _check_ids(parser: ConfigParser, overrides: Mapping[str, Any]) -> None:
    for key in overrides:
        parent = key.replace("::", "#").rpartition("#")[0]
        # a part may take arguments that the config leaves at their defaults
        if key not in parser and not (parent and parent in parser and isinstance(parser.get(parent), dict)):
            plain = [name for name, value in parser.get().items() if not isinstance(value, (dict, list))]
            known = [f"--{name}" for name in (*plain, "network_def#...") if name not in (*PLACE_IDS, "network")]
            raise UsageError(f"no option --{key}; the bundle has {', '.join(known)}.")


def with_absolute_paths(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair whose files are found from any folder."""
    others = ("pair", "points_space", "fixed_spacing", "moving_spacing")
    return {
        key: value if key in others else str(Path(value).expanduser().absolute()) for key, value in pair.items()
    }  # fmt: skip


def _set_up_handlers(parser: ConfigParser, recorder: str) -> int:
    """Put the recorder in, leave the progress bar out; the recorder's place among the handlers."""
    position = None
    for index, handler in enumerate(parser.get("handlers", [])):
        target = handler.get("_target_", "")
        if target.endswith("ProgressBar"):
            parser[f"handlers#{index}#_disabled_"] = True
        if target.endswith(RunRecorder.__name__):
            position, parser[f"handlers#{index}#_target_"] = index, recorder
    if position is None:
        raise ValueError(f"the bundle keeps no figures: its handlers need a {RECORDER}.")
    return position
