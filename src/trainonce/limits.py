"""How much memory there is, and saying no before something is made that would not fit into it."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainonce.errors import UserError

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def memory_bytes() -> int:
    """How much memory there is: what the machine has available now, or a control group's limit where that is less."""
    return min(_available(), *_group_limits())


def refuse_beyond_memory(needed: int, what: str) -> None:
    """Raise `UserError` where `needed` bytes are more than the memory there is; `what` would take them."""
    there_is = memory_bytes()
    if needed > there_is:
        raise UserError(f"{what} would take {size(needed)} of memory, and {size(there_is)} are there")


def size(count: int) -> str:
    """So many bytes in words: 13.1 MB."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count // scale:,} {unit}"
    return f"{count:,} bytes"


def _available() -> int:
    """What Linux estimates new work can have without swapping; elsewhere all that the machine has."""
    for line in _lines(_MEMINFO):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_limits() -> Iterator[int]:
    """The limits of this process's control groups and of all above them, of both versions; as a container shows them
    too, at the root."""
    yield 2**63
    for line in ["0::/", "0:memory:/", *_lines(_OWN_CGROUPS)]:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (_CGROUPS, "memory.max")
        inside = PurePosixPath(group.lstrip("/"))
        for place in (inside, *inside.parents):
            yield from (int(text) for text in _lines(root / place / name) if text.isdecimal())  # else it says max


def _lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
