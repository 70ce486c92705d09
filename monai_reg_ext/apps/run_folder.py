# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from monai.utils import optional_import

from monai_reg_ext.apps.config_leaves import config_leaves
from monai_reg_ext.apps.pair_recorder import PAIR_ROW
from monai_reg_ext.data import whole_file
from monai_reg_ext.transforms.save_registration import FILES

fcntl, has_fcntl = optional_import("fcntl")  # not on Windows

__all__ = ["RunFolder"]

SETTINGS, TABLE, SUMMARY, LOG, LOCK = "settings.json", "metrics.csv", "summary.json", "batch.log", ".lock"
RUN_FILES = (SETTINGS, TABLE, SUMMARY, LOG, "report.html")
PAIR_FILES = (*(f"{name}.nii.gz" for name in FILES), "report.png", PAIR_ROW)
RUN_IDS = ("method", "package")
UNFINISHED = ".unfinished_*"  # what whole_file and SaveRegistrationd leave behind when they are killed
WAY_OUT = "Give another --output, or --overwrite to remove them and start anew."
PATIENCE = 20.0  # seconds for the workers of a killed run to notice and end


class RunFolder:
    """The output folder of a run: whose results lie there, which pairs are finished, and what may be removed.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def claim(self, settings: Mapping[str, Any], overwrite: bool = False) -> bool:
        """Make sure that results of other settings are neither mixed with new ones nor lost.

        Pairs may have been added since; those that are there must be the same.

        Args:
            settings: of the new run, see :py:meth:`monai_reg_ext.apps.bundle_run.BundleRun.description`.
            overwrite: remove what an earlier run of other settings wrote, and nothing else.

        Returns:
            Whether results of the same settings are there.

        Raises:
            ValueError: when there are results of other or unknown settings and ``overwrite`` is not set, or a
                ``settings.json`` of something else.
        """
        earlier = self._settings()
        if overwrite or not self._has_results():
            self.clear()
            return False
        if earlier is None:
            raise ValueError(f"{self.path} holds results whose settings are not known. {WAY_OUT}")
        other = _differences(earlier, _plain(settings))
        if other:
            raise ValueError(f"{self.path} holds results of other settings ({other}). {WAY_OUT}")
        return True

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of the results that lie here."""
        with whole_file(self.path / SETTINGS) as path:
            path.write_text(json.dumps(_plain(settings), indent=4, ensure_ascii=False) + "\n", encoding="utf-8")

    def finished(self, pair: str) -> dict[str, Any] | None:
        """The row of a finished pair, ``None`` for one that is not."""
        return self._read(Path(pair) / PAIR_ROW)

    def sweep(self, pairs: Iterable[str]) -> None:
        """Remove what a killed run left unfinished, of some pairs and of the folder itself."""
        for folder in (self.path, *(self.path / pair for pair in pairs)):
            for leftover in folder.glob(UNFINISHED):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def clear(self) -> None:
        """Remove the files that a run wrote, and the folders of its pairs when nothing else is in them."""
        pairs = self._pairs()
        if not pairs:
            return
        self.sweep(pairs)
        for path in (self.path / pair / name for pair in pairs for name in PAIR_FILES):
            path.unlink(missing_ok=True)
        for folder in (self.path / pair for pair in pairs):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for name in RUN_FILES:
            (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[IO[bytes]]:
        """Keep other runs out of this folder, as long as the file given, or a copy in another process, is open.

        Raises:
            ValueError: when another run is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("wb") as file:
            if has_fcntl:
                self._lock(file)
            yield file

    def _lock(self, file: IO[bytes]) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ValueError(f"another run is at work in {self.path}. Wait for it, or end it.") from None
                time.sleep(0.2)

    def _settings(self) -> dict[str, Any] | None:
        earlier = self._read(SETTINGS)
        if earlier is not None and not (isinstance(earlier, dict) and {"config", "method", "pairs"} <= earlier.keys()):
            raise ValueError(f"{self.path / SETTINGS} is not of a run. Give another --output.")
        return earlier

    def _has_results(self) -> bool:
        """Failed attempts are no results: nobody has to ask before they are replaced."""
        summary = self._read(SUMMARY) or {}
        if summary.get("pairs", 0) > summary.get("failed", 0):
            return True
        return any((self.path / pair / PAIR_ROW).is_file() for pair in self._pairs())

    def _pairs(self) -> list[str]:
        """Names of the pairs of the run that wrote here; only such as can be folders of it."""
        earlier = self._settings() or {}
        names = [pair["pair"] for pair in earlier.get("pairs", [])]
        if (self.path / TABLE).is_file():
            with (self.path / TABLE).open(newline="", encoding="utf-8") as file:
                names += [row.get("pair") or "" for row in csv.DictReader(file)]
        return [name for name in dict.fromkeys(names) if name not in ("", ".", "..") and Path(name).name == name]

    def _read(self, name: str | Path) -> dict[str, Any] | None:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}). Mend it, or remove it.") from None


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists, keys are text."""
    return json.loads(json.dumps(settings, default=str))


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first few things that differ, in words; empty when the earlier results are those of these settings."""
    pairs = {pair["pair"]: pair for pair in now["pairs"]}
    changed = [pair["pair"] for pair in earlier["pairs"] if pairs.get(pair["pair"]) != pair]
    found = [f"pair {name} is {'of other files' if name in pairs else 'not asked for'} now" for name in changed]
    old, new = ({**config_leaves(run["config"]), **{key: run.get(key) for key in RUN_IDS}} for run in (earlier, now))
    found += [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in old | new if old.get(key) != new.get(key)]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
