"""Work on several things, where what one is refused with keeps no other from its turn."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from trainonce.errors import RunError, UserError

T = TypeVar("T")
Found = TypeVar("Found")


def for_each(items: Sequence[T], work: Callable[[T], Found]) -> Iterator[tuple[T, Found | UserError | RunError]]:
    """What some work gives for each item, or what it was refused with. The refusal of an only item is raised."""
    for item in items:
        try:
            found: Found | UserError | RunError = work(item)
        except (UserError, RunError) as error:
            if len(items) == 1:
                raise
            found = error
        yield item, found
