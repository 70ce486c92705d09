# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
if not DOCS.is_dir():
    pytest.skip("the documentation is not here", allow_module_level=True)
SPEC = importlib.util.spec_from_file_location("run_pages", DOCS / "run_pages.py")
run_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_pages)


@pytest.mark.parametrize("page", run_pages.pages())
def test_what_a_page_tells_to_run_runs(page, tmp_path):
    run_pages.run_page(page, tmp_path)


def test_a_page_whose_command_fails_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(run_pages, "DOCS", tmp_path)
    (tmp_path / "wrong.md").write_text("text\n\n<!-- runs -->\n```bash\nfalse | true\ntouch here\n```\n")

    assert run_pages.pages() == ["wrong.md"]
    with pytest.raises(subprocess.CalledProcessError):
        run_pages.run_page("wrong.md", tmp_path)
    assert not (tmp_path / "here").exists()


def test_blocks_without_the_mark_are_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_pages, "DOCS", tmp_path)
    (tmp_path / "page.md").write_text("```bash\nfalse\n```\n\n<!-- runs: no_such_package -->\n```python\n1 / 0\n```\n")

    assert [block.package for block in run_pages.blocks("page.md")] == ["no_such_package"]
    run_pages.run_page("page.md", tmp_path)
