"""What the commands share: reading options, and going on after a refusal."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import typer

from trainonce.cli import display
from trainonce.cli.stopping import Stop, stop_on_signal
from trainonce.errors import UserError

LONG = 1000
"""Characters: no sentence has so many."""


class WholeHelp(typer.core.TyperGroup):
    """Commands whose list has the whole first sentence of what each does, which Click would cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(LONG)) for name, one in self.commands.items()])


class Work:
    """Work that is shown, and that Ctrl-C and SIGTERM stop once it has begun; until then they end the command."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._stop = Stop()
        self.show: Callable[[int, int, str], None] = lambda _done, _total, _text: None
        """Shows progress: what is done of how much, and a text."""

    def start(self) -> None:
        """Begin it."""
        self._stop = self._stack.enter_context(stop_on_signal())
        self.show = self._stack.enter_context(display.progress())

    @property
    def stopped_by(self) -> int | None:
        """The signal that asked to stop, if one did."""
        return self._stop.number

    def should_stop(self) -> bool:
        """Whether a signal asked to stop."""
        return self._stop.number is not None


@contextmanager
def work() -> Iterator[Work]:
    """Inside, work can be begun; at the end signals do again what they did, and progress is not shown any more."""
    with ExitStack() as stack:
        yield Work(stack)


def given(context: typer.Context, name: str) -> bool:
    """Whether the command line, and not a default, set the parameter of that name."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_beside(context: typer.Context, option: str, allowed: set[str]) -> None:
    """Raise `UserError` where the command line has options beside `option` that it would silently leave unused."""
    for parameter in context.command.params:
        if parameter.name and parameter.name not in allowed and given(context, parameter.name):
            refusal = UserError(f"{parameter.opts[0]} cannot be given together with {option}")
            refusal.everywhere = True
            raise refusal


def bucket_centres(text: str) -> tuple[float, ...] | Literal["paper"]:
    """The centres that --buckets names: numbers, the paper's for `paper`, none for nothing."""
    if text == "paper":
        return "paper"
    return numbers(text, "--buckets", float) if text else ()


def numbers(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """The numbers of an option, with commas between. Raises `UserError` that names the option."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between, such as 4,6,8; not {text!r}") from None


def fold_named(text: str) -> tuple[int, int]:
    """The fold that --fold names: its number and how many there are. Raises `UserError` for another text."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise UserError(f"--fold takes a fold and how many there are, such as 2/5; not {text!r}")
    return int(number), int(count)
