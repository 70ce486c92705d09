# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import inspect
import logging
import sys

import pytest

from monai_reg_ext.apps import command_line
from monai_reg_ext.apps.command_line import COMMANDS, main
from monai_reg_ext.apps.usage_error import UsageError


@pytest.fixture
def calls(monkeypatch):
    """Replaces the commands by two that only note what they are called with, or raise ``calls.error``."""

    class Calls(list):
        error: Exception | None = None

    calls = Calls()

    def strict(first, second="2", *, level=0):
        """A command.

        monai-reg strict FIRST
        """
        calls.append((first, second, level))
        if calls.error is not None:
            raise calls.error

    def free(first, **options):
        """Another command."""
        calls.append((first, options))

    monkeypatch.setattr(command_line, "COMMANDS", {"strict": strict, "free": free})
    monkeypatch.setattr(command_line, "_set_up_messages", lambda verbose: None)
    return calls


def status_of(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def test_arguments_and_options_reach_the_command(calls):
    main(["strict", "a.nii.gz", "--level", "[1,2]"])
    main(["free", "x", "--network_def#refiner#iterations", "7", "--spacing", "auto"])

    assert calls == [("a.nii.gz", "2", [1, 2]), ("x", {"network_def#refiner#iterations": 7, "spacing": "auto"})]


@pytest.mark.parametrize(
    "arguments", [["strict"], ["strict", "a", "--leval", "3"], ["strict", "a", "b", "c"], ["strict", "a", "b", "args"]]
)
def test_what_is_not_understood_runs_nothing_and_says_in_one_line_what_exists(calls, capsys, arguments):
    assert status_of(*arguments) == 2

    output = capsys.readouterr()
    assert calls == []
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("monai-reg strict: ")
    assert "--level" in output.err
    assert "monai-reg strict --help" in output.err


def test_an_unknown_command_is_answered_by_those_there_are(calls, capsys):
    assert status_of("stirct") == 2

    assert capsys.readouterr().err == "monai-reg: no command 'stirct'; there are strict, free\n"


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ValueError("wrong,\nbadly"), "monai-reg strict: wrong, badly\n", 1),
        (FileNotFoundError("no file at a."), "monai-reg strict: no file at a.\n", 1),
        (KeyError("inner"), "monai-reg strict: KeyError: 'inner'\n", 1),
        (UsageError("not so."), "monai-reg strict: not so. See monai-reg strict --help.\n", 2),
        (KeyboardInterrupt(), "monai-reg strict: interrupted\n", 130),
    ],
)
def test_an_error_is_one_line_and_a_status(calls, capsys, error, line, status):
    calls.error = error

    assert status_of("strict", "a") == status

    assert capsys.readouterr().err == line


def test_verbose_shows_the_traceback_too(calls, capsys):
    calls.error = ValueError("wrong")

    assert status_of("strict", "a", "--verbose") == 1

    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("monai-reg strict: wrong\n")


@pytest.mark.parametrize("arguments", [["strict", "--help"], ["strict", "a", "-h"]])
def test_help_is_the_commands_own_text_and_runs_nothing(calls, capsys, arguments):
    assert status_of(*arguments) == 0

    assert capsys.readouterr().out == "A command.\n\nmonai-reg strict FIRST\n"
    assert calls == []


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_all_of_them_are_listed(calls, capsys, arguments):
    assert status_of(*arguments) == 0

    output = capsys.readouterr().out
    assert "  strict          A command.\n  free            Another command.\n" in output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_shows_an_example(name):
    lines = inspect.getdoc(COMMANDS[name]).splitlines()

    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert any(line.startswith(f"Example: monai-reg {name} ") for line in lines)
    assert any(line.startswith(f"monai-reg {name} ") for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name):
    text = inspect.getdoc(COMMANDS[name])

    parameters = inspect.signature(COMMANDS[name]).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert [option for option in options if f"--{option}" not in text] == []


def test_the_overview_fits_a_screen(capsys):
    main([])

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("verbose", "said"), [(False, ["warning"]), (True, ["information", "warning", "error"])])
def test_warnings_are_shown_and_errors_left_to_the_commands_own_line(monkeypatch, capsys, verbose, said):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    monkeypatch.setattr(logging.getLogger("monai.bundle.workflows"), "level", logging.INFO)
    command_line._set_up_messages(verbose)
    log = logging.getLogger("monai_reg_ext.some_part")

    log.info("information")
    log.warning("warning")
    log.error("error")

    assert capsys.readouterr().err.splitlines() == said


def test_the_process_s_own_arguments_are_taken(calls, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["monai-reg", "strict", "own"])

    main()

    assert calls == [("own", "2", 0)]
