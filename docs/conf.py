# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Sphinx settings: ``sphinx-build -W -b html docs docs/_build`` with the package and its extra ``docs`` installed.

``docs/bundles`` and ``docs/measured.md`` are made by the build, see ``site_pages.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import monai_reg_ext

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
import site_pages  # noqa: E402 - Sphinx does not look for modules beside this file

project = "monai_reg_ext"
author = "monai_reg_ext contributors"
copyright = author  # noqa: A001 - Sphinx's name
version = release = monai_reg_ext.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # torch.nn.Module.forward says nothing about ours
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Shape", "notes_style")]

html_theme = "pydata_sphinx_theme"
html_title = project
html_sidebars = {"**": []}
html_theme_options = {"show_prev_next": True, "secondary_sidebar_items": ["page-toc"]}


def skip_aliases(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out MONAI's ``...D`` and ``...Dict`` aliases of dictionary transforms."""
    return True if isinstance(member, type) and what == "module" and member.__name__ != name else None


def write_pages(app: Sphinx) -> None:
    """Make the pages that come from other files of the repository."""
    site_pages.write_pages(DOCS)


def turn_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links to files that have a page lead to the page, and the table of bundles takes its place."""
    page = Path(app.env.doc2path(docname))
    text = source[0].replace(site_pages.OVERVIEW, site_pages.bundle_overview(DOCS.parent))
    source[0] = site_pages.site_links(text, page, page, DOCS)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", skip_aliases)
    app.connect("builder-inited", write_pages)
    app.connect("source-read", turn_links)
