"""What has been measured so far, in a file of lines, so that measuring goes on where it was stopped."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from trainonce.errors import UserError
from trainonce.files import locked
from trainonce.records import append_line, read_lines

LONGEST_MS = 1e9


class Log:
    """Lines of measurements, each with its number and named times; in memory, and in a file where there is a `path`.

    The file's first line is an `identity`: of what is measured, how and where. Measurements of another identity are
    forgotten. Raises `UserError` that names a line which is damaged.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.lines = path, list[dict[str, Any]]()
        if path is not None:
            found = read_lines(path)
            if found[:1] == [identity]:
                self.lines = found[1:]
                return
            path.write_bytes(b"")
            append_line(path, identity, counted=False)

    @classmethod
    @contextmanager
    def held(cls, path: Path | None, identity: dict[str, Any]) -> Iterator[Self]:
        """The log, kept from other processes meanwhile. Raises `UserError` where one has it."""
        if path is None:
            yield cls(None, identity)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, f"another process is measuring into {path}"):
            yield cls(path, identity)

    def check(self, expected: Sequence[dict[str, int]]) -> None:
        """Raise `UserError` unless line i has the lists of times that `expected[i]` names, each of that length."""
        for number, line in enumerate(self.lines):
            counts = expected[number] if number < len(expected) else {}
            right = line.get("number") == number and line.keys() == {"number", *counts}
            if not counts or not right or not all(_times(line[name], count) for name, count in counts.items()):
                raise UserError(f"{self.path}, line {number + 2} is damaged: delete the file to measure anew")

    def add(self, times: dict[str, list[float]]) -> None:
        """Record one line of times."""
        self.lines.append({"number": len(self.lines), **times})
        if self.path is not None:
            append_line(self.path, self.lines[-1], counted=False)

    def remove(self) -> None:
        """Delete the file: a table was made of it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _times(values: Any, count: int) -> bool:
    """Whether these are as many times in milliseconds."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, float) and 0 < value < LONGEST_MS for value in values)
    )
