# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The site that Sphinx makes of ``docs``, and the pages of it that are made of other files."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
if not DOCS.is_dir():
    pytest.skip("the documentation is not here", allow_module_level=True)
SPEC = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
site_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site_pages)

SPHINX = ("sphinx", "myst_parser", "pydata_sphinx_theme")
METADATA = json.loads((REPOSITORY / "bundles" / "convex_adam" / "configs" / "metadata.json").read_text())
READMES = sorted(REPOSITORY.glob("bundles/*/docs/README.md"))


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with a bundle ``first`` and nothing else."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "README.md").write_text("# Measured\n\n[first](../bundles/first/docs/README.md)\n")
    make_bundle(tmp_path, "first")
    return tmp_path


def make_bundle(repository: Path, name: str, readme: str = "", **metadata) -> Path:
    bundle = repository / "bundles" / name
    for folder in ("configs", "docs", "models"):
        (bundle / folder).mkdir(parents=True)
    (bundle / "configs" / "metadata.json").write_text(json.dumps({**METADATA, **metadata}))
    (bundle / "docs" / "README.md").write_text(readme or f"# The bundle {name}\n\n## Performance\n\nDice 12.34\n")
    return bundle


def words_of(text: str) -> str:
    """Letters and digits, without tags."""
    return re.sub(r"\W+", " ", re.sub(r"<[^>]*>", "", text)).strip()


def figures_of(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+", text))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_a_page_for_every_bundle(tmp_path):
    missing = [name for name in SPHINX if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra docs is not installed: {', '.join(missing)}")
    generated = shutil.ignore_patterns("_build", "bundles", "measured.md")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=generated)  # so that nothing is left beside the sources
    for folder in ("bundles", "benchmarks"):
        (tmp_path / folder).symlink_to(REPOSITORY / folder)

    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "site"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert built.returncode == 0, built.stderr
    overview = (tmp_path / "site" / "which_bundle.html").read_text()
    for readme in READMES:
        bundle = readme.parents[1]
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        page = html.unescape(
            re.sub(r"<[^>]*>", "", (tmp_path / "site" / "bundles" / f"{bundle.name}.html").read_text())
        )
        words = re.sub(r"\W+", " ", page)
        headings = re.findall(r"^#+ (.*)$", readme.read_text(), re.MULTILINE)
        for text in (
            metadata["name"],
            metadata["version"],
            metadata["data_source"],
            *metadata["references"],
            *headings,
        ):
            assert re.sub(r"\W+", " ", text).strip() in words, f"{bundle.name}: {text}"
        assert f'href="bundles/{bundle.name}.html"' in overview
    assert 'href="bundles/learn2optimise.html"' in (tmp_path / "site" / "own_network.html").read_text()


def test_a_bundles_page_is_made_of_its_metadata_and_its_readme(repository):
    bundle = repository / "bundles" / "first"
    changed = {"name": "Q|name", "version": "7.8.9", "changelog": {"7.8.9": "Qnews", "0.1.0": "old"}, "task": "Qtask"}
    changed |= {"data_source": "Qdata", "references": ["Qone.", "Qtwo."], "eval_metrics": {"Qdice": 56.78}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps({**METADATA, **changed}))

    site_pages.write_pages(repository / "docs")

    page = (repository / "docs" / "bundles" / "first.md").read_text()
    assert page.startswith(f"# The bundle first\n\n{METADATA['description']}.\n\n|")
    assert page.endswith("\n\n## Performance\n\nDice 12.34\n")
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", page, re.MULTILINE))
    assert rows["name"] == "Q\\|name"
    assert rows["version"] == "7.8.9: Qnews"
    assert rows["task"] == "Qtask"
    assert rows["data"] == "Qdata"
    assert rows["references"] == "Qone. Qtwo."
    assert rows["measured"] == "`Qdice` 56.78"
    assert rows["network's input"] == "`image`, float32, 2 channels of `32*n × 32*n × 32*n`: moving image; fixed image"


def test_bundles_that_come_and_go_take_their_pages_along(repository):
    docs = repository / "docs"
    site_pages.write_pages(docs)
    untouched = (docs / "bundles" / "first.md").stat().st_mtime_ns
    make_bundle(repository, "second")

    site_pages.write_pages(docs)

    assert {page.name for page in (docs / "bundles").iterdir()} == {"first.md", "second.md"}
    assert (docs / "bundles" / "first.md").stat().st_mtime_ns == untouched
    shutil.rmtree(repository / "bundles" / "first")
    site_pages.write_pages(docs)
    assert {page.name for page in (docs / "bundles").iterdir()} == {"second.md"}


@pytest.mark.parametrize(
    ("state", "expected"),
    [(None, "to be trained"), ({}, "none needed"), ({"weight": torch.ones(2)}, "come with it")],
)
def test_the_overview_tells_whether_weights_are_there(repository, state, expected):
    if state is not None:
        torch.save(state, repository / "bundles" / "first" / "models" / "model.pt")

    overview = site_pages.bundle_overview(repository)

    *_, weights = re.search(r"^\| \[`first`\]\(bundles/first.md\) (.*)\|$", overview, re.MULTILINE)[1].split("|")
    assert weights.strip() == expected
    assert "bundles/*" in overview


def test_links_of_a_readme_lead_to_pages_of_the_site_or_else_to_files(repository):
    make_bundle(
        repository,
        "second",
        "# Second\n\n[a](../../first/docs/README.md#data) [b](../../../docs/start.md#install) [c](data_license.txt) "
        "[d](#here) [e](https://example.org/x.md) [f](../../../benchmarks/README.md)\n\n"
        "```\n[g](data_license.txt)\n```\n",
    )

    site_pages.write_pages(repository / "docs")

    page = (repository / "docs" / "bundles" / "second.md").read_text()
    links = dict(re.findall(r"\[(\w)\]\(([^)]*)\)", page))
    assert links == {
        "a": "first.md#data",
        "b": "../start.md#install",
        "c": "../../bundles/second/docs/data_license.txt",
        "d": "#here",
        "e": "https://example.org/x.md",
        "f": "../measured.md",
        "g": "data_license.txt",
    }
    assert "[first](bundles/first.md)" in (repository / "docs" / "measured.md").read_text()


@pytest.mark.parametrize(
    "path",
    ["README.md", "CHANGELOG.md", "benchmarks/README.md", *(str(path.relative_to(REPOSITORY)) for path in READMES)],
)
def test_every_link_to_a_file_leads_to_one(path):
    source = REPOSITORY / path
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", source.read_text())

    assert [link for link in links if not (source.parent / link).exists()] == []


def test_rows_beside_other_tools_are_rows_of_the_measured_tables():
    measured = [figures_of(line) for line in (REPOSITORY / "benchmarks" / "README.md").read_text().splitlines()]
    rows = [line for line in (DOCS / "comparison.md").read_text().splitlines() if line.startswith("|")]
    rows = [row for row in rows if "http" not in row and "Apache" not in row and figures_of(row)]

    assert [row for row in rows if not any(figures_of(row) <= line for line in measured)] == []
    assert len(rows) > 10


def test_the_cost_of_a_cohort_is_computed_from_measured_figures():
    text = (DOCS / "cost.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| CPU") or line.startswith("| MB")]
    defaults = re.search(r"^cpu_seconds_of_a_pair, start_seconds = (.*)$", text, re.MULTILINE)[1]

    figures = figures_of("".join(rows))

    assert figures
    assert figures <= figures_of((REPOSITORY / "benchmarks" / "README.md").read_text())
    assert figures_of(defaults) <= figures
