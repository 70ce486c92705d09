# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Run what the how-to pages tell to run: ``python docs/run_pages.py [PAGE ...] [--folder DIR]``.

Every block of ``bash`` or ``python`` below the comment ``<!-- runs -->`` is run, page by page, in a folder that the
page has for itself; the first block that fails ends it. A block whose comment reads ``<!-- runs: NAME -->`` needs the
Python package NAME and is left out where that is not installed. Without a page, all of them are run. ``--figures``
copies the pictures that the pages show from what was made into ``docs/_static``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(
    r"^<!-- runs(?:: (?P<package>\w+))? -->\n```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.M | re.S
)
FIGURE = re.compile(r"^!\[[^]]*\]\(_static/(?P<name>[\w.]+)\)\n<!-- from (?P<source>\S+) -->$", re.MULTILINE)


class Block(NamedTuple):
    language: str
    code: str
    package: str | None


def pages() -> list[str]:
    """Names of the pages with something to run."""
    return sorted(path.name for path in DOCS.glob("*.md") if blocks(path.name))


def blocks(page: str) -> list[Block]:
    """What a page tells to run, in its order."""
    found = BLOCK.finditer((DOCS / page).read_text())
    return [Block(match["language"], match["code"], match["package"]) for match in found]


def figures(page: str) -> dict[str, str]:
    """Pictures of a page and the files they are copies of."""
    return {match["name"]: match["source"] for match in FIGURE.finditer((DOCS / page).read_text())}


def run_page(page: str, folder: Path) -> None:
    """Run the blocks of a page in a folder.

    Raises:
        subprocess.CalledProcessError: when one of them fails.
    """
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks(page):
        print(f"\n--- {page}\n{block.code}", flush=True)
        if block.package and importlib.util.find_spec(block.package) is None:
            print(f"left out: {block.package} is not installed", flush=True)
            continue
        shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        subprocess.run([*shell, block.code], cwd=folder, env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="*", help=f"of {', '.join(pages())}; by default all")
    parser.add_argument("--folder", type=Path, help="where files are left; by default a temporary folder")
    parser.add_argument("--figures", action="store_true", help="copy the pictures into docs/_static")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for page in arguments.page or pages():
            folder = (arguments.folder or Path(temporary)) / Path(page).stem
            folder.mkdir(parents=True, exist_ok=True)
            run_page(page, folder)
            for name, source in figures(page).items() if arguments.figures else ():
                shutil.copyfile(folder / source, DOCS / "_static" / name)


if __name__ == "__main__":
    main()
