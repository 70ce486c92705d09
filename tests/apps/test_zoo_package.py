# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from monai.apps.utils import HashCheckError
from monai.bundle import download, download_large_files
from monai.bundle import scripts as monai_scripts

from monai_reg_ext.apps import zoo_package
from monai_reg_ext.apps.zoo_package import pack_bundle


@pytest.fixture
def bundle(bundles_dir, tmp_path) -> Path:
    """A copy of a bundle, in which a run has left something, beside a folder for packages."""
    copy = Path(shutil.copytree(bundles_dir / "convex_adam", tmp_path / "bundles" / "my_method"))
    (copy / "eval").mkdir(exist_ok=True)
    (copy / "eval" / "metrics.csv").write_text("pair")
    (copy / ".hidden").write_text("mine")
    return copy


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served on this computer."""
    folder = tmp_path / "dist"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def content(folder: Path) -> dict[str, bytes]:
    left_out = ("eval", ".hidden")
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: value for name, value in found.items() if not name.startswith(left_out)}


def test_monais_command_downloads_from_a_served_folder_what_was_packed(bundle, served, tmp_path):
    folder, url = served

    package = pack_bundle(bundle, folder, url)
    command = [sys.executable, "-m", "monai.bundle", "download", "--name", "my_method", "--bundle_dir", "here"]
    command += ["--url", f"{url}/my_method_v0.1.0.zip"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=dict(os.environ))

    assert package == folder / "my_method_v0.1.0.zip"
    assert content(tmp_path / "here" / "my_method") == content(bundle)
    assert not (tmp_path / "here" / "my_method" / "eval").exists()


def test_monai_downloads_from_a_local_folder(bundle, tmp_path):
    package = pack_bundle(bundle, tmp_path / "dist", (tmp_path / "dist").as_uri())

    download("my_method", url=package.as_uri(), bundle_dir=tmp_path / "here", progress=False)

    assert content(tmp_path / "here" / "my_method") == content(bundle)
    downloaded = {path.name for path in (tmp_path / "here" / "my_method").iterdir()}
    assert downloaded == {"LICENSE", "configs", "docs", "models"}


def test_large_files_lie_beside_the_package_and_monai_fetches_them(bundle, served, tmp_path, monkeypatch):
    folder, url = served
    weights = bytes(range(256)) * 200
    (bundle / "models" / "model.pt").write_bytes(weights)
    monkeypatch.setattr(zoo_package, "LARGEST", len(weights) - 1)

    pack_bundle(bundle, folder, url)
    download("my_method", url=f"{url}/my_method_v0.1.0.zip", bundle_dir=tmp_path / "here", progress=False)
    without = content(tmp_path / "here" / "my_method")
    download_large_files(str(tmp_path / "here" / "my_method"))

    assert "models/model.pt" not in without
    assert content(tmp_path / "here" / "my_method") == content(bundle) | {"large_files.yml": without["large_files.yml"]}
    (folder / "my_method_v0.1.0" / "models" / "model.pt").write_bytes(weights[::-1])
    (tmp_path / "here" / "my_method" / "models" / "model.pt").unlink()
    with pytest.raises(HashCheckError, match="sha256 hash check"):
        download_large_files(str(tmp_path / "here" / "my_method"))


def test_a_large_file_that_the_bundles_own_list_lacks_is_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_package, "LARGEST", 1000)
    (bundle / "large_files.yml").write_text("large_files:\n- path: models/other.pt\n  url: https://example.org/o.pt\n")

    with pytest.raises(ValueError, match=r"large_files.yml does not list it"):
        pack_bundle(bundle, tmp_path / "dist", "https://example.org")

    assert not (tmp_path / "dist").exists()


def test_files_that_the_bundles_own_list_has_are_left_to_it(bundle, tmp_path):
    (bundle / "large_files.yml").write_text("large_files:\n- path: models/model.pt\n  url: https://example.org/m.pt\n")

    package = pack_bundle(bundle, tmp_path / "dist", "https://example.org")

    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
        assert archive.read("my_method/large_files.yml") == (bundle / "large_files.yml").read_bytes()
    assert "my_method/models/model.pt" not in names
    assert "my_method/configs/metadata.json" in names


def test_the_index_is_the_one_that_monai_looks_for_versions_in(bundle, tmp_path, monkeypatch):
    folder = tmp_path / "dist"
    package = pack_bundle(bundle, folder, "https://example.org/zoo/")
    pack_bundle(bundle.rename(bundle.with_name("other")), folder, "https://example.org/zoo")

    answer = SimpleNamespace(text=(folder / "model_info.json").read_text(), raise_for_status=lambda: None)
    monkeypatch.setattr(monai_scripts, "requests", SimpleNamespace(get=lambda *args, **kwargs: answer))
    monkeypatch.setattr(monai_scripts, "has_requests", True)

    info = monai_scripts.get_bundle_info("my_method")
    assert info["browser_download_url"] == "https://example.org/zoo/my_method_v0.1.0.zip"
    assert monai_scripts.get_all_bundles_list() == [("my_method", "0.1.0"), ("other", "0.1.0")]
    index = json.loads(answer.text)
    assert index["my_method_v0.1.0"]["checksum"] == hashlib.sha1(package.read_bytes()).hexdigest()
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert listed["my_method_v0.1.0.zip"] == hashlib.sha256(package.read_bytes()).hexdigest()
    assert set(listed) == {"my_method_v0.1.0.zip", "other_v0.1.0.zip"}


def test_the_same_content_is_the_same_package_and_another_one_needs_a_new_version(bundle, tmp_path):
    folder = tmp_path / "dist"
    first = pack_bundle(bundle, folder, "https://example.org").read_bytes()
    os.utime(bundle / "LICENSE", (1e9, 1e9))
    again = pack_bundle(bundle, folder, "https://example.org").read_bytes()
    (bundle / "docs" / "README.md").write_text("another")

    with pytest.raises(ValueError, match="Raise the version"):
        pack_bundle(bundle, folder, "https://example.org")

    assert first == again == (folder / "my_method_v0.1.0.zip").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "model_info.json", "my_method_v0.1.0.zip"]
