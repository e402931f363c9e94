"""Damages to files, drawn from a seed."""

import random
from collections.abc import Iterator


def flips(content: bytes, count: int, *, seed: int = 0, within: tuple[int, int] | None = None) -> Iterator[bytes]:
    """The content with one bit changed, `count` times; `within` are the first place and the one after the last."""
    rng = random.Random(seed)
    for _ in range(count):
        place = rng.randrange(*(within or (0, len(content))))
        yield content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
