# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import fire
from fire.core import FireExit

import monai_reg_ext
from monai_reg_ext.apps.commands import (
    apply,
    batch,
    bundles,
    compose,
    convert,
    correspondences,
    evaluate,
    invert,
    label_app,
    phantom,
    register,
    report,
    zoo,
)
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data.error_line import error_line

__all__ = ["main"]

COMMANDS = {
    command.__name__.replace("_", "-"): command
    for command in (
        register,
        apply,
        convert,
        invert,
        compose,
        evaluate,
        report,
        batch,
        correspondences,
        bundles,
        label_app,
        zoo,
        phantom,
    )
}
HELP_FLAGS = {"--help", "-h"}
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script ``monai-reg``: one command with its arguments, see ``monai-reg --help``.

    Args:
        arguments: in place of the process's own.

    Raises:
        SystemExit: with status 1 when the command fails, 2 when it is not understood; one line on stderr tells why,
            with ``--verbose`` the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    name = arguments[0] if arguments else "--help"
    if name == "--version":
        print(monai_reg_ext.__version__)
    elif name in HELP_FLAGS:
        print(_overview())
    elif name not in COMMANDS:
        _leave(f"no command {name!r}; there are {', '.join(COMMANDS)}", MISUSED)
    elif HELP_FLAGS.intersection(arguments):
        print(inspect.getdoc(COMMANDS[name]))
    else:
        _run(name, arguments[1:], verbose)


def _run(name: str, arguments: list[str], verbose: bool) -> None:
    _set_up_messages(verbose)
    try:
        _bind(name, arguments)()
    except UsageError as error:
        _leave(f"{error} See monai-reg {name} --help.", MISUSED, name)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED, name)
    except Exception as error:
        if verbose:
            traceback.print_exc()
        _leave(error_line(error), FAILED, name)


def _bind(name: str, arguments: list[str]) -> Callable[[], None]:
    """The command with its arguments; nothing has run yet, so that wrong ones are found before any work."""
    command = COMMANDS[name]
    bound: list[Callable[[], None]] = []

    @functools.wraps(command)
    def remember(*args: Any, **kwargs: Any) -> None:
        bound[:] = [functools.partial(command, *args, **kwargs)]

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # fire would print a screen of usage
            fire.Fire(remember, command=arguments, name=f"monai-reg {name}")
    except FireExit as misuse:
        problem = misuse.trace.elements[-1].ErrorAsStr() if misuse.trace.HasError() else "not understood"
        raise UsageError(f"{problem.strip().rstrip('.')}. {_signature_words(name)}") from None
    return bound[0]


def _signature_words(name: str) -> str:
    parameters = inspect.signature(COMMANDS[name]).parameters.values()
    options = [f"--{parameter.name}" for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return f"Options are {', '.join(options)}." if options else "There are no options."


def _set_up_messages(verbose: bool) -> None:
    """Warnings on stderr; errors are told once, by the command; with ``verbose`` everything."""
    handler = logging.StreamHandler()
    if not verbose:
        handler.addFilter(lambda record: record.levelno < logging.ERROR)
        warnings.filterwarnings("ignore")
        logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it prints by itself
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler])


def _overview() -> str:
    lines = [f"  {name:15s} {inspect.getdoc(command).splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "monai-reg COMMAND ...: deformable registration of medical scans.",
            "",
            *lines,
            "",
            "monai-reg COMMAND --help shows the arguments and an example. --verbose tells what is going on,",
            "and the traceback of an error. Exit status: 0 done, 1 failed, 2 not understood.",
            "",
            "Example: monai-reg phantom scans && monai-reg register scans/fixed.nii.gz scans/moving.nii.gz",
        ]
    )


def _leave(message: str, status: int, name: str = "") -> None:
    print(f"monai-reg{' ' if name else ''}{name}: {message}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
