# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.apps.zoo_checks import zoo_problems
from monai_reg_ext.apps.zoo_package import pack_bundle
from monai_reg_ext.data.bundle_dir import bundle_dir, bundle_names

__all__ = ["zoo"]


def zoo(action: str = "check", *names: str, output: str = "dist", url: str = "") -> None:
    """Make packages of bundles, to share them as MONAI's model zoo does.

    monai-reg zoo check [NAME ...]    what the model zoo would object to
    monai-reg zoo pack [NAME ...]     NAME_vVERSION.zip, model_info.json and SHA256SUMS

    NAME is a bundle or its folder, by default every bundle that is installed.

      --output DIR    where packages are collected, by default dist/
      --url URL       where others will find what is in DIR; by default DIR itself, for this computer

    A bundle with a problem is not packed, and nor is another content under a version that DIR has
    already. python -m monai.bundle download --name NAME --url URL/NAME_vVERSION.zip --bundle_dir NEW
    gets a package. Exit status 1 tells of problems.

    Example: monai-reg zoo pack convex_adam --url https://example.org/bundles
    """
    if action not in ("check", "pack"):
        raise UsageError(f"no zoo {action}: it is zoo check or zoo pack.")
    bundles = [bundle_dir(str(name)).resolve() for name in names or bundle_names()]
    problems = {bundle: zoo_problems(bundle) for bundle in bundles}
    for bundle in bundles:
        for problem in problems[bundle]:
            print(f"{bundle.name}: {problem}")
    sound = [bundle for bundle in bundles if not problems[bundle]]
    if action == "pack":
        _pack(sound, Path(str(output)).expanduser().resolve(), str(url))
    else:
        print("\n".join(f"{bundle.name}: no objections" for bundle in sound))
    if len(sound) < len(bundles):
        raise ValueError(f"{len(bundles) - len(sound)} of {len(bundles)} bundles are not fit for a zoo, see above.")


def _pack(bundles: list[Path], folder: Path, url: str) -> None:
    url = url.rstrip("/") or folder.as_uri()
    for bundle in bundles:
        package = pack_bundle(bundle, folder, url)
        print(f"{package} is for: --name {bundle.name} --url {url}/{package.name}")
