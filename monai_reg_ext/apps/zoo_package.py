# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_reg_ext.apps.zoo_checks import LARGE_FILES, LARGEST, METADATA, large_file_names
from monai_reg_ext.data.bundle_dir import bundle_files
from monai_reg_ext.data.whole_file import whole_file

__all__ = ["INDEX", "pack_bundle"]

INDEX = "model_info.json"
CHECKSUMS = "SHA256SUMS"
WHEN = (1980, 1, 1, 0, 0, 0)  # of every file in a package: the same content is the same package


def pack_bundle(bundle: Path, folder: Path, url: str) -> Path:
    """Write a bundle's package, its line in the model zoo's ``model_info.json`` and its checksum.

    The package ``<bundle>_v<version>.zip`` holds the folder of the bundle. Files beyond 25 MB go beside it, under
    ``<bundle>_v<version>/``, and the package has a ``large_files.yml`` in their place, by which
    ``python -m monai.bundle download_large_files`` brings them. The same content gives the same bytes.

    Args:
        bundle: its folder, without :py:func:`zoo_problems`.
        folder: where packages are collected.
        url: where others will find what is in ``folder``.

    Returns:
        Path of the package.

    Raises:
        ValueError: when another content was packed under this version before, or a large file cannot be listed.
    """
    version = json.loads((bundle / METADATA).read_text(encoding="utf-8"))["version"]
    name, base = f"{bundle.name}_v{version}", url.rstrip("/")
    package, large = folder / f"{name}.zip", _large_files(bundle)
    with whole_file(package) as unfinished:
        _write_zip(unfinished, bundle, large, f"{base}/{name}")
        checksum = _digest(unfinished, "sha1")
        index = _read_index(folder)
        if index.get(name, {}).get("checksum", checksum) != checksum:
            raise ValueError(f"{package} was packed before with another content. Raise the version in {METADATA}.")
    for path in large:
        with whole_file(folder / name / path.relative_to(bundle)) as copy:
            shutil.copyfile(path, copy)
    index[name] = {"checksum": checksum, "source": f"{base}/{package.name}"}
    _write_text(folder / INDEX, json.dumps(dict(sorted(index.items())), indent=4) + "\n")
    _write_checksums(folder, index)
    return package


def _large_files(bundle: Path) -> list[Path]:
    """Files that the package leaves out and lists; those that the bundle's own list has already are left out only."""
    listed = large_file_names(bundle)
    large = [path for path in bundle_files(bundle) if path.stat().st_size > LARGEST]
    unlisted = [path for path in large if path.relative_to(bundle).as_posix() not in listed]
    if unlisted and listed:
        raise ValueError(
            f"{unlisted[0].relative_to(bundle)} has more than {LARGEST // 10**6} MB, and {LARGE_FILES} does not list "
            "it. Add it there, or remove that file to have one written."
        )
    return unlisted


def _write_zip(path: Path, bundle: Path, large: Sequence[Path], base: str) -> None:
    listed = large_file_names(bundle)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as package:
        for file in bundle_files(bundle):
            inside = file.relative_to(bundle).as_posix()
            if file not in large and inside not in listed:
                _add(package, f"{bundle.name}/{inside}", file.read_bytes())
        if large:
            names = [file.relative_to(bundle).as_posix() for file in large]
            text = _large_files_text({name: (f"{base}/{name}", bundle / name) for name in names})
            _add(package, f"{bundle.name}/{LARGE_FILES}", text.encode())


def _add(package: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, WHEN)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    package.writestr(entry, content)


def _large_files_text(entries: Mapping[str, tuple[str, Path]]) -> str:
    lines = ["large_files:"]
    for name, (url, file) in entries.items():
        values = {"path": name, "url": url, "hash_val": _digest(file, "sha256"), "hash_type": "sha256"}
        lines += [f"{'  ' if key != 'path' else '- '}{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _digest(path: Path, algorithm: str) -> str:
    return hashlib.new(algorithm, path.read_bytes()).hexdigest()


def _read_index(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_checksums(folder: Path, index: Mapping[str, Mapping[str, str]]) -> None:
    """What ``sha256sum --check`` reads, of all packages and the large files beside them."""
    files = [path for name in sorted(index) for path in (folder / f"{name}.zip", *sorted((folder / name).rglob("*")))]
    lines = [f"{_digest(path, 'sha256')}  {path.relative_to(folder).as_posix()}\n" for path in files if path.is_file()]
    _write_text(folder / CHECKSUMS, "".join(lines))


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
