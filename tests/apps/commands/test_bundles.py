# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest

from monai_reg_ext.apps.commands import bundles
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data.bundle_dir import bundle_dir


def test_the_list_names_every_bundle_with_its_task(capsys):
    bundles()

    assert any(line.split()[:2] == ["convex_adam", "Deformable"] for line in capsys.readouterr().out.splitlines())


def test_a_description_has_settings_options_and_references_within_100_columns(capsys):
    bundles("describe", "convex_adam")

    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "same_modality" in text
    assert "search_quick" not in text
    assert "--network_def#estimator#half_width 4" in " ".join(text.split())
    assert "--initial auto" in " ".join(text.split())
    assert "--output_dir" not in text
    assert "WBIR" not in text
    assert "MICCAI 2021" in " ".join(text.split())


def test_a_copy_is_a_bundle_of_its_own_without_results_of_runs(tmp_path, capsys):
    first, second = tmp_path / "new" / "first", tmp_path / "second"
    bundles("copy", "convex_adam", first)
    (first / "eval").mkdir()
    changed = json.loads((first / "configs" / "metadata.json").read_text()) | {"name": "mine"}
    (first / "configs" / "metadata.json").write_text(json.dumps(changed))

    bundles("copy", first, second)
    bundles("describe", second)

    assert "second: mine" in capsys.readouterr().out
    assert sorted(path.name for path in second.iterdir()) == ["LICENSE", "configs", "docs", "models"]
    assert (second / "models" / "model.pt").read_bytes() == (bundle_dir("convex_adam") / "models/model.pt").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "second"]


def test_a_folder_with_content_is_not_copied_into(tmp_path):
    (tmp_path / "file").write_text("mine")

    with pytest.raises(ValueError, match="exists already"):
        bundles("copy", "convex_adam", tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_bundle_is_answered_by_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"'convax'.*convex_adam"):
        bundles("describe", "convax")


@pytest.mark.parametrize("arguments", [("show",), ("describe",), ("copy", "convex_adam"), ("list", "convex_adam")])
def test_other_words_are_not_understood(arguments):
    with pytest.raises(UsageError, match="it is list, describe NAME or copy NAME DIR"):
        bundles(*arguments)
