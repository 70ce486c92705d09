# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Pages of the site that are made of other files of the repository, for ``conf.py``.

Every bundle has a page, ``bundles/<name>``: facts from its metadata, then its README, where its figures stand.
``measured`` is ``benchmarks/README.md``. Both are written whenever the site is built and kept out of the repository.
Links of the sources lead to files, so that they work where the repository is read; ``site_links`` turns them to pages.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

OVERVIEW = "<!-- bundles -->"
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def bundle_folders(repository: Path) -> list[Path]:
    """The bundles, by name."""
    return sorted(path.parents[1] for path in (repository / "bundles").glob("*/configs/metadata.json"))


def page_sources(docs: Path) -> dict[Path, Path]:
    """Pages that are made of other files, and these files."""
    readmes = {
        docs / "bundles" / f"{path.name}.md": path / "docs" / "README.md" for path in bundle_folders(docs.parent)
    }
    return {**readmes, docs / "measured.md": docs.parent / "benchmarks" / "README.md"}


def write_pages(docs: Path) -> None:
    """Write the pages that are not as they should be, and remove those of bundles that are gone."""
    sources = page_sources(docs)
    for page in set((docs / "bundles").glob("*.md")) - set(sources):
        page.unlink()
    for page, source in sources.items():
        text = source.read_text()
        if page.parent != docs:
            text = bundle_page(text, source.parents[1])
        text = site_links(text, source, page, docs)
        if not page.is_file() or page.read_text() != text:  # an unchanged page is not read anew by Sphinx
            page.parent.mkdir(exist_ok=True)
            page.write_text(text)


def bundle_page(readme: str, bundle: Path) -> str:
    """A bundle's README with what its metadata tell below the title."""
    metadata = _metadata(bundle)
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(metadata, bundle).items())
    title, _, body = readme.partition("\n")
    return f"{title}\n\n{metadata['description']}.\n\n| `{bundle.name}` | |\n|---|---|\n{rows}\n{body}"


def bundle_overview(repository: Path) -> str:
    """A table of all bundles, with links to their pages, and the pages themselves as children of the page it is on."""
    rows = []
    for bundle in bundle_folders(repository):
        metadata = _metadata(bundle)
        cells = (metadata["image_classes"], metadata["label_classes"], weights(bundle))
        rows.append(f"| [`{bundle.name}`](bundles/{bundle.name}.md) | {' | '.join(map(_cell, cells))} |")
    head = "| bundle | scans | labels and points | weights |\n|---|---|---|---|"
    return "\n".join([head, *rows, "", "```{toctree}", ":hidden:", ":glob:", "", "bundles/*", "```"])


def site_links(text: str, source: Path, page: Path, docs: Path) -> str:
    """Links of a file, as they must be on the page that is made of it; what is not a page stays a link to the file.

    Args:
        text: content of ``source``; fenced code is left alone.
        source: where relative links of the text start.
        page: where they start on the site.
        docs: folder of the pages.
    """
    pages = {os.path.normpath(made_of): made for made, made_of in page_sources(docs).items()}

    def turned(link: re.Match[str]) -> str:
        target = os.path.normpath(source.parent / link["path"])
        return os.path.relpath(pages.get(target, target), page.parent) + (link["anchor"] or "")

    return "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in FENCED.split(text))


def weights(bundle: Path) -> str:
    """Whether weights come with a bundle."""
    model = bundle / "models" / "model.pt"
    if not model.is_file():
        return "to be trained"
    return "come with it" if torch.load(model, map_location="cpu", weights_only=True) else "none needed"


def _metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def _facts(metadata: Mapping[str, Any], bundle: Path) -> dict[str, str]:
    tensors = metadata["network_data_format"]
    packages = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    packages |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    return {
        "name": metadata["name"],
        "version": f"{metadata['version']}: {metadata['changelog'][metadata['version']]}",
        "task": metadata["task"],
        "scans": metadata["image_classes"],
        "labels and points": metadata["label_classes"],
        "result": metadata["pred_classes"],
        "network's input": "; ".join(_tensor(name, tensor) for name, tensor in tensors["inputs"].items()),
        "network's output": "; ".join(_tensor(name, tensor) for name, tensor in tensors["outputs"].items()),
        "weights": weights(bundle),
        "data": metadata["data_source"],
        "measured": ", ".join(f"`{name}` {value}" for name, value in metadata["eval_metrics"].items()) or "not yet",
        "tested with": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "use": metadata["intended_use"],
        "references": " ".join(metadata["references"]),
    }


def _tensor(name: str, tensor: Mapping[str, Any]) -> str:
    channels, sizes = "; ".join(tensor["channel_def"].values()), " × ".join(map(str, tensor["spatial_shape"]))
    return f"`{name}`, {tensor['dtype']}, {tensor['num_channels']} channels of `{sizes}`: {channels}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
