"""Names of a package that are imported when they are first asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def names_from(package: str, where: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """A package's `__getattr__`: `where` says of its modules which names they hold.

    For packages whose import must not take the seconds that torch takes.
    """

    def getattribute(name: str) -> object:
        for module, names in where.items():
            if name in names:
                return getattr(import_module(f"{package}.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattribute
