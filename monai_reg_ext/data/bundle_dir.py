# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["RESULTS", "bundle_dir", "bundle_files", "bundle_names"]

MARK = Path("configs") / "metadata.json"  # what makes a folder a bundle
RESULTS = ("eval", "__pycache__")  # what runs leave in a bundle's folder


def bundle_dir(name_or_path: str | Path) -> Path:
    """Folder of a bundle.

    Args:
        name_or_path: a folder, or the name of a bundle that comes with the package, see :py:func:`bundle_names`.

    Raises:
        FileNotFoundError: when there is no such bundle, with the names that exist.
    """
    given = Path(name_or_path).expanduser()
    for folder in (given, *(root / name_or_path for root in _roots())):
        if (folder / MARK).is_file():
            return folder
    raise FileNotFoundError(
        f"no bundle {str(name_or_path)!r}: give one of {', '.join(bundle_names()) or 'none'}, or a folder with {MARK}."
    )


def bundle_names() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted({path.parents[1].name for root in _roots() for path in root.glob(f"*/{MARK}")})


def bundle_files(bundle: Path) -> list[Path]:
    """The files that make up a bundle, in order; not what runs have left in its folder, nor hidden ones."""
    inside = (path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    return sorted(
        bundle / path for path in inside if not any(part in RESULTS or part.startswith(".") for part in path.parts)
    )


def _roots() -> tuple[Path, ...]:
    """Where bundles lie: in an installed package within it, in a checkout beside it."""
    package = Path(str(files("monai_reg_ext")))
    return package / "bundles", package.parent / "bundles"
