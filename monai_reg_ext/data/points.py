# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from monai_reg_ext.data.landmark_formats import FORMATS, LandmarkFormat
from monai_reg_ext.data.whole_file import whole_file
from monai_reg_ext.transforms.conventions import lps_to_ras_points, mm_to_voxel, ras_to_lps_points, voxel_to_mm

__all__ = ["read_points", "write_points"]

SPACES = ("voxel", "ras", "lps")
ELASTIX_SPACES = {"point": "lps", "index": "voxel"}


def read_points(path: str | Path, space: str = "ras", affine: torch.Tensor | None = None) -> torch.Tensor:
    """Points of a file, in world millimetres.

    Known by their suffix are Slicer's ``.mrk.json`` and ``.fcsv``, whose header says RAS or LPS and decides over
    ``space``, and legacy ``.vtk`` polydata, text or binary, in which a title with ``SPACE=`` does. Two other forms are
    told apart by their content. *CSV*: one point per line, three comma-separated numbers; empty lines, lines that begin
    with ``#`` and one header line are skipped. *elastix*: a first line ``point`` (mm, LPS) or ``index`` (voxels), which
    decides over ``space``, then the number of points, then three numbers per line.

    Args:
        path: the file.
        space: what the numbers are where the file does not tell: ``"voxel"`` (indices along the array axes, as
            Learn2Reg writes), ``"ras"`` or ``"lps"`` (mm).
        affine: ``(4, 4)``, voxel to mm RAS, of the image that voxels count in; mm do not need it.

    Returns:
        ``(N, 3)`` float64, mm RAS, in the order of the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for an unknown space, voxels without an affine, or a file that is not as said above.
    """
    _check_space(space)
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no point file at {path}.")
    landmark_format = _landmark_format(path)
    if landmark_format is not None:
        points, space = _parse_landmarks(landmark_format, path, space)
        return _to_ras(points, space, affine, path)
    lines = list(_content_lines(path))
    if lines and lines[0][1].lower() in ELASTIX_SPACES:
        space = ELASTIX_SPACES[lines[0][1].lower()]
        points = _parse_elastix(lines[1:], path)
    else:
        points = _parse_csv(lines, path)
    return _to_ras(points, space, affine, path)


def write_points(
    path: str | Path, points_mm: torch.Tensor, space: str = "ras", affine: torch.Tensor | None = None
) -> None:
    """Write points with six decimals, in the form of the suffix; the file appears whole or not at all.

    ``.mrk.json``, ``.fcsv`` and ``.vtk`` name their space in the header. Every other suffix is CSV, one point per line:
    millimetres get a comment line that names the space, voxels none, as Learn2Reg's files have it.

    Args:
        path: the file; its folder is made if need be, an older file is replaced.
        points_mm: ``(N, 3)`` in mm RAS.
        space: what to write: ``"voxel"``, ``"ras"`` or ``"lps"``.
        affine: ``(4, 4)``, voxel to mm RAS, of the image that voxels are to count in.

    Raises:
        ValueError: for an unknown space, voxels without an affine or in a form for mm, or points that are not
            ``(N, 3)`` and finite.
    """
    _check_space(space)
    path = Path(path).expanduser()
    landmark_format = _landmark_format(path)
    if landmark_format is not None and space == "voxel":
        raise ValueError(f"{path}: this form holds mm, not voxels. Give space='ras' or 'lps', or write CSV.")
    points = torch.as_tensor(points_mm, dtype=torch.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not points.isfinite().all():
        raise ValueError(f"points must be (N, 3) and finite to be written to {path}, got {tuple(points.shape)}.")
    if space == "voxel":
        points = mm_to_voxel(points, _required(affine, "space='voxel'"))
    elif space == "lps":
        points = ras_to_lps_points(points)
    render = _render_csv if landmark_format is None else landmark_format.render
    with whole_file(path) as unfinished:
        unfinished.write_text(render(points.tolist(), space), encoding="utf-8")


def _render_csv(rows: list[list[float]], space: str) -> str:
    comment = "" if space == "voxel" else f"# x,y,z in mm, {space.upper()}\n"
    return comment + "".join(f"{x:.6f},{y:.6f},{z:.6f}\n" for x, y, z in rows)


def _landmark_format(path: Path) -> LandmarkFormat | None:
    return next((form for suffix, form in FORMATS.items() if path.name.lower().endswith(suffix)), None)


def _parse_landmarks(landmark_format: LandmarkFormat, path: Path, space: str) -> tuple[torch.Tensor, str]:
    try:
        return landmark_format.parse(path.read_bytes(), space)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def _to_ras(points: torch.Tensor, space: str, affine: torch.Tensor | None, path: Path) -> torch.Tensor:
    if space == "voxel":
        return voxel_to_mm(points, _required(affine, f"{path} counts voxels"))
    return lps_to_ras_points(points) if space == "lps" else points


def _check_space(space: str) -> None:
    if space not in SPACES:
        raise ValueError(f"space must be one of {SPACES}, got {space!r}.")


def _required(affine: torch.Tensor | None, reason: str) -> torch.Tensor:
    if affine is None:
        raise ValueError(f"{reason}: give the affine of the image that the voxels belong to.")
    return torch.as_tensor(affine)


def _content_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are neither empty nor a comment, with their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text ({error}); points must be CSV or elastix text.") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _parse_csv(lines: list[tuple[int, str]], path: Path) -> torch.Tensor:
    if lines and not any(_is_number(field) for field in lines[0][1].split(",")):
        lines = lines[1:]  # a header
    return _parse_rows(lines, path, lambda line: line.split(","), "3 comma-separated numbers")


def _parse_elastix(lines: list[tuple[int, str]], path: Path) -> torch.Tensor:
    announced = lines[0][1] if lines else "nothing"
    if not announced.isdecimal():
        raise ValueError(f"{path}: the second line of an elastix point file is the number of points, got {announced}.")
    points = _parse_rows(lines[1:], path, str.split, "3 numbers separated by spaces")
    if len(points) != int(announced):
        raise ValueError(f"{path} announces {announced} points and holds {len(points)}.")
    return points


def _parse_rows(
    lines: list[tuple[int, str]], path: Path, split: Callable[[str], list[str]], expected: str
) -> torch.Tensor:
    if not lines:
        raise ValueError(f"{path} holds no points; each line needs {expected}.")
    rows = []
    for number, line in lines:
        fields = split(line)
        if len(fields) != 3 or not all(_is_number(field) for field in fields):
            raise ValueError(f"{path}, line {number}: needs {expected}, got {line!r}.")
        rows.append([float(field) for field in fields])
        if not all(math.isfinite(value) for value in rows[-1]):
            raise ValueError(f"{path}, line {number}: coordinates must be finite, got {line!r}.")
    return torch.tensor(rows, dtype=torch.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
