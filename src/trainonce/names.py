"""Names that people give: which of them can be a file's, how they are shown, how a command is written with them."""

import importlib.util
import os
import shlex
import unicodedata
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from trainonce.errors import UserError

LONGEST_NAME = 100
"""In bytes of UTF-8. File systems take 255, and a directory's name is made of several."""

_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make a terminal show the others in another order."""


def _obeyed(char: str) -> bool:
    """Whether a terminal obeys a character instead of showing it, or cannot show it."""
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _DIRECTIONS


def printable(text: str) -> str:
    """The text with every character that a terminal would obey written as an escape, but for ends of lines and tabs."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) if _obeyed(char) and char not in "\n\t" else char for char in text)


def _escaped(char: str) -> str:
    """A byte that is not UTF-8, as file names may have, is spelled as \\xe9 is; so is any other character."""
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char.encode("unicode_escape").decode()


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text: it has none of the half characters that stand for bytes which are not UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def file_name(name: str) -> str:
    """The name, where it can be the name of a file or directory or a part of one, and be shown.

    Raises `UserError` for one that is empty or long, that names another place, or that a terminal would not just show.
    """
    if not name or any(map(_obeyed, name)) or len(name.encode()) > LONGEST_NAME:
        raise UserError(f"a name has 1 to {LONGEST_NAME} bytes and no control characters, which {name[:99]!r} is not")
    if "/" in name or "\\" in name or name[0] in ".-~ " or name[-1] == " ":
        raise UserError(
            f"a name becomes part of a path: it has no slash, no blank at an end and no . - ~ in front, as {name!r} has"
        )
    return name


FileName = Annotated[str, AfterValidator(file_name)]
"""A field of settings that becomes part of a path."""


def command(*words: str | Path) -> str:
    """The words as one line that a shell reads as those words again: `trainonce` and its arguments.

    A path never looks like an option. What a terminal would obey is written as bash and zsh read it: $'\\x1b'.
    """
    return " ".join(map(quoted, words))


def quoted(word: str | Path) -> str:
    """One word of `command`."""
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if not any(map(_obeyed, text)):
        return shlex.quote(text)
    shown = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "\\'" else f"\\x{byte:02x}" for byte in os.fsencode(text)
    )
    return "$'" + "".join(shown) + "'"


def is_import_name(name: str) -> bool:
    """Whether a name has the form `package.module:Name`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


def refuse_code_inside(place: str | Path, name: str, what: str) -> None:
    """Raise `UserError` where `package.module:Name` would be imported from `place`: none of that is executed."""
    try:
        found = importlib.util.find_spec(name.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):  # which its import will say
        return
    places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
    if any(p and Path(p).resolve().is_relative_to(Path(place).resolve()) for p in places):
        raise UserError(f"the {what} {name} lies in {place} itself, whose code is not executed")


def import_named(name: str, what: str, others: Iterable[str], *, beside: str | Path | None = None) -> Any:
    """What `package.module:Name` names, which is imported from where Python looks, but not from inside `beside`.

    Raises `UserError` that names the `others` where it is no such name, and where nothing can be imported by it.
    """
    module, _, attribute = name.partition(":")
    if not is_import_name(name):
        raise UserError(
            f"unknown {what} {name[:100]!r}; there are {', '.join(others)}, and your own as package.module:Class"
        )
    if beside is not None:
        refuse_code_inside(beside, name, what)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        first = Path(module.partition(".")[0])
        here = isinstance(error, ModuleNotFoundError) and (first.with_suffix(".py").is_file() or first.is_dir())
        hint = "; Python does not look into this folder: put PYTHONPATH=. before the command" if here else ""
        raise UserError(f"the {what} {name} cannot be imported: {error}{hint}") from error


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its word: 1 seed, 3 seeds."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def plain(number: float, digits: int = 4, rounding: str = ROUND_HALF_EVEN) -> str:
    """A number to so many significant digits without an exponent, as options read it: 230, 12.5, 0.00004.

    Whole ones are kept all. `rounding` is one of the `decimal` module's.
    """
    exact = Decimal(float(number))
    digits = max(digits, exact.adjusted() + 1) if exact.is_finite() else digits
    return f"{Context(prec=digits, rounding=rounding).create_decimal(exact).normalize():f}"
