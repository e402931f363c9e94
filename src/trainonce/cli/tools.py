"""What the commands share: reading options, and going on after a refusal."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import typer

from trainonce.errors import RunError, UserError

T = TypeVar("T")
Found = TypeVar("Found")


def for_each(items: Sequence[T], work: Callable[[T], Found]) -> Iterator[tuple[T, Found | UserError | RunError]]:
    """What some work gives for each item, or what it was refused with, which keeps no other from its turn.

    The refusal of an only item is raised.
    """
    for item in items:
        try:
            found: Found | UserError | RunError = work(item)
        except (UserError, RunError) as error:
            if len(items) == 1:
                raise
            found = error
        yield item, found


def given(context: typer.Context, name: str) -> bool:
    """Whether the command line, and not a default, set the parameter of that name."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_beside(context: typer.Context, option: str, allowed: set[str]) -> None:
    """Raise `UserError` where the command line has options beside `option` that it would silently leave unused."""
    for parameter in context.command.params:
        if parameter.name and parameter.name not in allowed and given(context, parameter.name):
            raise UserError(f"{parameter.opts[0]} cannot be given together with {option}")


def bucket_centres(text: str) -> tuple[float, ...]:
    """The centres that --buckets names: numbers, the paper's for `paper`, none for nothing."""
    from trainonce.evaluation.population import PAPER_BUCKETS_M

    return PAPER_BUCKETS_M if text == "paper" else numbers(text, "--buckets", float) if text else ()


def numbers(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """The numbers of an option, with commas between. Raises `UserError` that names the option."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between, such as 4,6,8; not {text!r}") from None
