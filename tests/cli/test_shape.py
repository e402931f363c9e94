"""A command reads its options, calls a stage, and prints: its body is short."""

import ast
import inspect
import textwrap
from collections.abc import Callable

import pytest

from trainonce.cli.app import COMMANDS
from trainonce.cli.latency import build, check, show

LONGEST = 60


@pytest.mark.parametrize("command", [*COMMANDS.values(), build, show, check], ids=lambda command: command.__name__)
def test_a_body_is_short(command: Callable[..., None]) -> None:
    """Its lines from the sentence that `--help` shows: those above are its options."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    assert isinstance(function, ast.FunctionDef)
    assert function.end_lineno is not None
    assert function.end_lineno - function.body[0].lineno < LONGEST
