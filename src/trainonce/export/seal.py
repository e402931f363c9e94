"""The hash that an exported file carries, so that damage shows also where nothing lies beside it.

A sealed file is what its runtime needs, then a few bytes that the format has for remarks and that hold a SHA-256 of all
before them: they are the end of the file, so that every other bit is covered.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

DIGITS = 64
SEALED: Literal["trainonce-export-2"] = "trainonce-export-2"
"""The format of a description in a file that has a seal: without one, such a file is damaged."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """How a format's files end: `head`, the hexadecimal digits of the SHA-256, `tail`."""

    head: bytes
    tail: bytes = b""

    def put(self, body: bytes, *beside: bytes) -> bytes:
        """`body`, sealed. The hash is of it and of the files `beside` that belong to it."""
        return body + self.head + _digits(body, *beside) + self.tail

    def holds(self, content: bytes, *beside: bytes) -> bool | None:
        """Whether a file is as it was sealed; None for one of an earlier version, which has no seal."""
        end = len(content) - len(self.tail)
        start = end - DIGITS - len(self.head)
        if start < 0 or content[start : start + len(self.head)] != self.head or content[end:] != self.tail:
            return False if SEALED.encode() in content else None
        return content[end - DIGITS : end] == _digits(content[:start], *beside)


def _digits(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()
