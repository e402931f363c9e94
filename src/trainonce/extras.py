"""Optional dependencies: what is missing, and how it is installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from trainonce.errors import UserError


@contextmanager
def try_import(what: str, *extras: str, told: bool = False) -> Iterator[None]:
    """Inside, a failing import is a `UserError`: `what` needs these extras of trainonce, and how to install them.

    With `told` it also says what could not be imported.
    """
    try:
        yield
    except ImportError as error:
        needs = "an extra" if len(extras) == 1 else "extras"
        why = f" ({error})" if told else ""
        raise UserError(f"{what} needs {needs}: pip install 'trainonce[{','.join(extras)}]'{why}") from error
