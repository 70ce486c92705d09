# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import io
import logging
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from monai_reg_ext.apps.html_report_metric import ReportMetric
from monai_reg_ext.apps.html_report_run import ReportPair, ReportRun

__all__ = ["ReportPicture", "order_by_worst", "pictures_of", "ranking_metric"]

logger = logging.getLogger(__name__)

# the first of these that was measured says which pair is worst
RANKING = ("dice", "tre_mm", "sdlogj")
LARGEST_WIDTH, JPEG_QUALITY = 1920, 85
LARGEST_TOTAL = 10_000_000  # characters; keeps the page small enough to be sent by mail


@dataclass(frozen=True)
class ReportPicture:
    """A pair's ``report.png`` on the page.

    Args:
        pair: whose picture it is.
        link: address of the file, relative to the page.
        source: the picture itself as a data URI; empty where there is only the link.
        size: width and height of what is embedded, in pixels.
    """

    pair: ReportPair
    link: str
    source: str = ""
    size: tuple[int, int] = (0, 0)


def ranking_metric(run: ReportRun) -> ReportMetric | None:
    """What says which pair is worst; None when nothing does."""
    measured = {metric.name: metric for metric in run.metrics}
    return next((measured[name] for name in RANKING if name in measured), None)


def order_by_worst(pairs: Sequence[ReportPair], metric: ReportMetric | None) -> list[ReportPair]:
    """The worst pair first; pairs without a value last, in the order of the run."""
    if metric is None:
        return list(pairs)
    sign = 1 if metric.higher_is_better else -1
    known = [pair for pair in pairs if metric.name in pair.values]
    others = [pair for pair in pairs if metric.name not in pair.values]
    return sorted(known, key=lambda pair: sign * pair.values[metric.name]) + others


def pictures_of(run: ReportRun, embedded: int) -> list[ReportPicture]:
    """The pictures of a run, the worst pair first.

    Args:
        run: the run.
        embedded: how many are part of the page; the others, and what would make the page too large, are links.
    """
    pictures, room = [], LARGEST_TOTAL
    for pair in order_by_worst([pair for pair in run.pairs if pair.picture], ranking_metric(run)):
        picture = ReportPicture(pair, _link(run.folder, pair.picture))
        if len(pictures) < embedded:
            picture = _embed(picture, room)
            room -= len(picture.source)
        pictures.append(picture)
    return pictures


def _link(folder: Path, path: Path) -> str:
    # every letter that means something in an address is quoted, so that a name cannot lead elsewhere
    return urllib.parse.quote(path.relative_to(folder).as_posix())


def _embed(picture: ReportPicture, room: int) -> ReportPicture:
    try:
        with Image.open(picture.pair.picture) as image:
            image = image.convert("RGB")
    except OSError as error:
        logger.warning("%s cannot be shown in the report: %s", picture.pair.picture, error)
        return picture
    image.thumbnail((LARGEST_WIDTH, 2 * LARGEST_WIDTH))
    buffer = io.BytesIO()
    # colours at full resolution, for thin coloured lines
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return ReportPicture(picture.pair, picture.link, source, image.size) if len(source) <= room else picture
