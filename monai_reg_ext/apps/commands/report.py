# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

__all__ = ["report"]


def report(folder: str) -> None:
    """Make one page out of the results of a run.

    monai-reg report DIR

    DIR is the output folder of register, of batch or of a bundle's run, with its metrics.csv. The page,
    DIR/report.html, opens in any browser without network: a table that sorts, the distributions of all
    figures before and after, the pictures of the worst pairs, settings and versions.

    Example: monai-reg report aligned
    """
    from monai_reg_ext.apps.html_report import write_html_report  # the only user of a template engine

    print(write_html_report(str(folder)))
