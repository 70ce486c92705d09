# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from monai.data import Dataset

from monai_reg_ext.data.error_line import error_line

__all__ = ["PairDataset"]

logger = logging.getLogger(__name__)


class PairDataset(Dataset):
    """Pairs of images, loaded and transformed one by one.

    Args:
        data: one dictionary per pair with at least ``pair`` (its name), ``fixed`` and ``moving``, as
            :py:func:`monai_reg_ext.data.pair_list` gives them.
        transform: what to do with each dictionary, e.g. load its files.
        on_error: ``"raise"`` stops at the first pair that cannot be prepared. ``"record"`` logs what went wrong and
            gives ``{"pair": name, "error": message}`` in its place, so that a batch run goes on with the others.

    Raises:
        ValueError: when ``data`` holds something else than pairs, or for an unknown ``on_error``.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Sequence[Callable] | Callable | None = None,
        on_error: str = "raise",
    ) -> None:
        if on_error not in ("raise", "record"):
            raise ValueError(f"on_error must be 'raise' or 'record', got {on_error!r}.")
        for index, item in enumerate(data):
            _check_pair(index, item)
        super().__init__(data, transform)
        self.on_error = on_error

    def _transform(self, index: int) -> dict[str, Any]:
        if self.on_error == "raise":
            return super()._transform(index)
        try:
            return super()._transform(index)
        except Exception as error:
            name, message = self.data[index]["pair"], error_line(error)
            logger.error("pair %s cannot be prepared: %s", name, message)
            logger.debug("pair %s: traceback", name, exc_info=True)
            return {"pair": name, "error": message}


def _check_pair(index: int, item: Any) -> None:
    if not isinstance(item, dict) or not {"pair", "fixed", "moving"} <= item.keys():
        got = sorted(item) if isinstance(item, dict) else type(item).__name__
        raise ValueError(
            f"data[{index}] must be a dictionary with pair, fixed and moving, got {got}. Single subjects are paired "
            "by RandomPairDataset."
        )
