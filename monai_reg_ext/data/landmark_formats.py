# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Landmark files of Slicer and VTK: content in, content out; no file is opened here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

__all__ = ["FORMATS", "LandmarkFormat"]

SLICER_SPACES = {"RAS": "ras", "0": "ras", "LPS": "lps", "1": "lps"}
FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


class LandmarkFormat:
    """How a kind of file is parsed and written.

    Args:
        parse: from the bytes of a file and the space to assume where it does not tell its own, to points ``(N, 3)``
            float64 as they stand in it, and their space, ``"ras"`` or ``"lps"``. Raises ``ValueError``.
        render: from rows of numbers and their space to the text of a file.
    """

    def __init__(
        self,
        parse: Callable[[bytes, str], tuple[torch.Tensor, str]],
        render: Callable[[Sequence[Sequence[float]], str], str],
    ) -> None:
        self.parse = parse
        self.render = render


# --- Slicer's .mrk.json -----------------------------------------------------------------------------------------------


def _parse_markups(content: bytes, space: str) -> tuple[torch.Tensor, str]:
    try:
        markups = json.loads(content)["markups"]
        lists = [(markup["coordinateSystem"], markup["controlPoints"]) for markup in markups]
        rows = [(system, _placed(point)) for system, points in lists for point in points]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"is not a markups file of Slicer ({type(error).__name__}: {error}); it needs markups with a "
            "coordinateSystem and controlPoints with a position."
        ) from None
    systems = sorted({str(system) for system, _ in rows})
    if len(systems) > 1:
        raise ValueError(f"mixes points in {' and '.join(systems)}.")
    return _points([position for _, position in rows]), _slicer_space(systems[0]) if systems else space


def _placed(point: dict) -> list[float] | None:
    return point["position"] if point.get("positionStatus", "defined") == "defined" else None


def _render_markups(rows: Sequence[Sequence[float]], space: str) -> str:
    points = [
        {"id": str(number), "label": f"F-{number}", "position": list(row), "positionStatus": "defined"}
        for number, row in enumerate(rows, start=1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": space.upper(), "controlPoints": points}
    return json.dumps({"@schema": MARKUPS_SCHEMA, "markups": [markup]}, indent=1) + "\n"


# --- Slicer's .fcsv ---------------------------------------------------------------------------------------------------


def _parse_fcsv(content: bytes, space: str) -> tuple[torch.Tensor, str]:
    lines = _text(content).splitlines()
    for line in lines:
        if match := re.fullmatch(r"#\s*CoordinateSystem\s*=\s*(\w+)\s*", line):
            space = _slicer_space(match[1])
    rows = [line.split(",")[1:4] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return _points(rows), space


def _render_fcsv(rows: Sequence[Sequence[float]], space: str) -> str:
    head = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {space.upper()}\n# columns = {FCSV_COLUMNS}\n"
    points = (
        f"{number},{x:.6f},{y:.6f},{z:.6f},0,0,0,1,1,1,0,F-{number},,\n"
        for number, (x, y, z) in enumerate(rows, start=1)
    )
    return head + "".join(points)


# --- VTK's legacy polydata --------------------------------------------------------------------------------------------


def _parse_vtk(content: bytes, space: str) -> tuple[torch.Tensor, str]:
    header = re.match(
        rb"# vtk DataFile Version [^\n]*\n(?P<title>[^\n]*)\n\s*(?P<code>ASCII|BINARY)\s+DATASET\s+(?P<kind>\w+)",
        content.replace(b"\r\n", b"\n") if b"BINARY" not in content[:400] else content,
    )
    if header is None or header["kind"] != b"POLYDATA":
        raise ValueError("is not a legacy VTK file of polydata.")
    if match := re.search(rb"SPACE=(\w+)", header["title"]):  # Slicer's
        space = _slicer_space(match[1].decode())
    points = re.search(rb"\bPOINTS\s+(\d+)\s+(float|double)[^\S\n]*\r?\n", content)
    if points is None:
        raise ValueError("has no POINTS of float or double numbers.")
    count, body = 3 * int(points[1]), content[points.end() :]
    if header["code"] == b"BINARY":
        kind = np.dtype(">f4" if points[2] == b"float" else ">f8")  # VTK writes big-endian whatever the machine
        if len(body) < count * kind.itemsize:
            raise ValueError(f"announces {count // 3} points and ends before.")
        rows = np.frombuffer(body, kind, count).reshape(-1, 3).tolist()
    else:
        words = body.split(maxsplit=count)[:count]
        rows = [words[start : start + 3] for start in range(0, count, 3)]
    return _points(rows), space


def _render_vtk(rows: Sequence[Sequence[float]], space: str) -> str:
    head = f"# vtk DataFile Version 3.0\nlandmarks SPACE={space.upper()}\nASCII\nDATASET POLYDATA\n"
    points = "".join(f"{x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in rows)
    vertices = "".join(f"1 {index}\n" for index in range(len(rows)))
    return f"{head}POINTS {len(rows)} double\n{points}VERTICES {len(rows)} {2 * len(rows)}\n{vertices}"


# --- helpers ----------------------------------------------------------------------------------------------------------


def _slicer_space(name: str) -> str:
    if name.upper() not in SLICER_SPACES:
        raise ValueError(f"counts in the unknown coordinate system {name!r}; known are RAS and LPS.")
    return SLICER_SPACES[name.upper()]


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text ({error}).") from None


def _points(rows: Sequence[Sequence[str | bytes | float]]) -> torch.Tensor:
    if not rows:
        raise ValueError("holds no points.")
    points = []
    for number, row in enumerate(rows, start=1):
        try:
            point = [float(value) for value in row]
        except (ValueError, TypeError):
            point = []
        if len(point) != 3 or not all(map(math.isfinite, point)):
            raise ValueError(f"point {number} needs three finite numbers, got {row!r}.")
        points.append(point)
    return torch.tensor(points, dtype=torch.float64)


FORMATS = {
    ".mrk.json": LandmarkFormat(_parse_markups, _render_markups),
    ".fcsv": LandmarkFormat(_parse_fcsv, _render_fcsv),
    ".vtk": LandmarkFormat(_parse_vtk, _render_vtk),
}
