# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from pathlib import Path

from monai_reg_ext.data import pair_name

__all__ = ["read_pair_csv"]

PATHS = tuple(f"{side}{kind}" for kind in ("", "_label", "_mask", "_points") for side in ("fixed", "moving"))
COLUMNS = (*PATHS, "points_space", "pair")


def read_pair_csv(path: str | Path) -> list[dict[str, str]]:
    """The pairs that a CSV file lists, a row each.

    Columns: ``fixed`` and ``moving``, and where wanted ``fixed_label moving_label fixed_mask moving_mask fixed_points
    moving_points`` (paths, relative ones from the file's own folder), ``points_space`` (``ras`` if not said), ``pair``
    (the name; by default of both images). An empty field counts as not given.

    Returns:
        Dictionaries as :py:func:`monai_reg_ext.data.pair_list` gives them.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no table, a column is unknown or missing, a row has no images, or two have one name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no table of pairs at {path}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows, columns = list(reader), reader.fieldnames or []
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table ({error}).") from None
    unknown = [str(column) for column in columns if column not in COLUMNS]
    if unknown or not {"fixed", "moving"} <= set(columns):
        problem = f"does not know the columns {unknown}" if unknown else f"has the columns {columns}"
        raise ValueError(f"{path} {problem}; it needs fixed and moving, and may have {', '.join(COLUMNS[2:])}.")
    if not rows:
        raise ValueError(f"{path} lists no pairs.")
    return [_pair(row, path, number) for number, row in enumerate(rows, start=2)]


def _pair(row: dict[str, str | None], path: Path, line: int) -> dict[str, str]:
    if None in row:
        raise ValueError(f"{path}, line {line}: more fields than columns. Put quotes around names with commas.")
    given = {key: value.strip() for key, value in row.items() if value and value.strip()}
    if not {"fixed", "moving"} <= given.keys():
        raise ValueError(f"{path}, line {line}: needs a fixed and a moving image, got {given}.")
    paths = {key: str(path.parent / Path(given[key]).expanduser()) for key in PATHS if key in given}
    pair = {"pair": given.get("pair") or pair_name(paths["fixed"], paths["moving"]), **paths}
    if "fixed_points" in pair or "moving_points" in pair:
        pair["points_space"] = given.get("points_space", "ras")
    return pair
