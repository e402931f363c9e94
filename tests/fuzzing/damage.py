"""Random damage to a file: what it becomes, and how to call that."""

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DIGIT = re.compile(rb"[0-9]")


@dataclass(frozen=True)
class Damage:
    """What becomes of a file: other bytes; nothing, where `content` is None; a link to itself, where it is a loop."""

    how: str
    name: str
    content: bytes | None
    loop: bool = False

    def put(self, folder: Path) -> None:
        """Do it to the file in a folder."""
        path = folder / self.name
        if self.content is not None:
            path.write_bytes(self.content)
            return
        path.unlink()
        if self.loop:
            path.symlink_to(path.name)


def draw(rng: random.Random, name: str, content: bytes) -> Damage:
    """A random damage to a file that is not empty; where the one drawn cannot be done to it, a flipped bit."""
    how = rng.choice(list(WAYS))
    if how in ("deleted", "loop"):
        return Damage(how, name, None, loop=how == "loop")
    changed = WAYS[how](rng, content)
    if changed is None:
        return Damage("bit", name, _bit(rng, content))
    return Damage(how, name, changed)


def restore(folder: Path, originals: dict[str, bytes]) -> None:
    """Bring back a folder's files, and remove what else is there."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = str(path.relative_to(folder))
        if path.is_symlink() or (path.is_file() and name not in originals):
            path.unlink()
        elif path.is_dir() and not any(other.startswith(f"{name}/") for other in originals):
            shutil.rmtree(path)
    for name, content in originals.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def _bit(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _bytes(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(changed)


def _digit(rng: random.Random, content: bytes) -> bytes | None:
    """One digit becomes another one."""
    start = rng.randrange(len(content))
    found = DIGIT.search(content, start) or DIGIT.search(content)
    if found is None:
        return None
    other = rng.choice([digit for digit in b"0123456789" if digit != found[0][0]])
    return content[: found.start()] + bytes([other]) + content[found.end() :]


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def _cut_at_line(rng: random.Random, content: bytes) -> bytes | None:
    """Whole lines are lost at the end; the last one left has its end or not."""
    ends = [place for place, byte in enumerate(content[:-1]) if byte == 0x0A]
    return content[: rng.choice(ends) + rng.randrange(2)] if ends else None


def _zeros(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    length = min(len(content) - start, rng.choice((1, 16, 512, 4096)))
    return content[:start] + bytes(length) + content[start + length :]


def _inserted(rng: random.Random, content: bytes) -> bytes:
    place = rng.randint(0, len(content))
    return content[:place] + rng.randbytes(rng.randint(1, 16)) + content[place:]


def _lines(change: Callable[[random.Random, list[bytes]], None]) -> Callable[[random.Random, bytes], bytes | None]:
    def changed(rng: random.Random, content: bytes) -> bytes | None:
        lines = content.splitlines(keepends=True)
        if len(lines) < 2:
            return None
        change(rng, lines)
        return b"".join(lines)

    return changed


def _swap(rng: random.Random, lines: list[bytes]) -> None:
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]


def _double(rng: random.Random, lines: list[bytes]) -> None:
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))


def _lose(rng: random.Random, lines: list[bytes]) -> None:
    lines.pop(rng.randrange(len(lines)))


WAYS: dict[str, Callable[[random.Random, bytes], bytes | None]] = {
    "bit": _bit,
    "bytes": _bytes,
    "digit": _digit,
    "cut": _cut,
    "cut at a line's end": _cut_at_line,
    "zeros": _zeros,
    "inserted": _inserted,
    "lines swapped": _lines(_swap),
    "line doubled": _lines(_double),
    "line lost": _lines(_lose),
    "emptied": lambda _rng, _content: b"",
    "deleted": lambda _rng, _content: None,
    "loop": lambda _rng, _content: None,
}
"""What can become of a file's bytes, by name; None where this cannot be done to them."""
