# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

__all__ = ["error_line"]


def error_line(error: BaseException) -> str:
    """What went wrong, in one line that is never empty, for tables and logs.

    It is the error as a transform raised it, without the layers that MONAI wraps around it. Errors whose text is no
    sentence for users, such as a ``KeyError``, go with their kind.
    """
    while isinstance(error, RuntimeError) and str(error).startswith("applying transform") and error.__cause__:
        error = error.__cause__
    kind, message = type(error).__name__, " ".join(str(error).splitlines())
    if message and isinstance(error, (ValueError, OSError)):
        return message
    return f"{kind}: {message}" if message else kind
