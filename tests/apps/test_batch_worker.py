# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from monai_reg_ext.apps import batch_worker


class Workflow:
    """Of two of which each knows the other, as MONAI's workflow and its engine do."""

    def __init__(self) -> None:
        self.engine = type("Engine", (), {})()
        self.engine.workflow = self


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_pair_stays_in_memory_after_its_row(monkeypatch, tmp_path, fails):
    kept: list[weakref.ref] = []

    class Run:
        def run(self, pairs, folder, recorder):
            workflow = Workflow()
            kept.append(weakref.ref(workflow))
            if fails:
                raise ValueError("no such scan")
            return [{"pair": pairs[0]["pair"], "error": ""}]

    monkeypatch.setattr(batch_worker, "BundleRun", Run)
    monkeypatch.setattr(logging.getLogger(batch_worker.__name__), "disabled", True)  # pytest keeps what is logged
    gc.disable()  # nothing but the worker itself tidies up
    try:
        row = batch_worker.pair_row({"run": {}, "output_dir": str(tmp_path)}, {"pair": "one"})
    finally:
        gc.enable()

    assert row == {"pair": "one", "error": "no such scan" if fails else ""}
    assert [reference() for reference in kept] == [None]
