"""What has been measured so far, in a file of lines, so that measuring goes on where it was stopped."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, JsonValue

from trainonce.errors import UserError
from trainonce.files import locked
from trainonce.records import append_line, read_lines
from trainonce.settings import JsonObject, Record, Whole

LONGEST_MS = 1e9
Times = list[Annotated[float, Field(gt=0, lt=LONGEST_MS)]]
"""Milliseconds."""


class MeasuredLine(Record):
    """A line of measurements: of parts alone, or of whole networks and of the anchors beside them."""

    number: Whole
    """Which it is, from 0."""
    parts: Times = Field(default_factory=list)
    anchors: Times = Field(default_factory=list)
    ms: Times = Field(default_factory=list)
    """Of the networks."""

    def counts(self) -> dict[str, int]:
        """How many times it has of each kind."""
        return {name: len(values) for name, values in self.to_json().items() if name != "number"}


class Log:
    """Lines of measurements, in memory, and in a file where there is a `path`.

    The file's first line is an `identity`: of what is measured, how and where. Measurements of another identity are
    forgotten. Raises `UserError` that names a line which is damaged.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, JsonValue]) -> None:
        self.path, self.lines = path, list[MeasuredLine]()
        if path is not None:
            found = read_lines(path)
            if found[:1] == [identity]:
                self.lines = [self._line(number, values) for number, values in enumerate(found[1:])]
                return
            path.write_bytes(b"")
            append_line(path, identity, counted=False)

    @classmethod
    @contextmanager
    def held(cls, path: Path | None, identity: Mapping[str, JsonValue]) -> Iterator[Self]:
        """The log, kept from other processes meanwhile. Raises `UserError` where one has it."""
        if path is None:
            yield cls(None, identity)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, f"another process is measuring into {path}"):
            yield cls(path, identity)

    def check(self, expected: Sequence[dict[str, int]]) -> None:
        """Raise `UserError` unless line i has as many times of each kind as `expected[i]` names."""
        for number, line in enumerate(self.lines):
            if line.number != number or number >= len(expected) or line.counts() != expected[number]:
                raise self._damaged(number)

    def add(self, line: MeasuredLine) -> None:
        """Record one line of times."""
        self.lines.append(line)
        if self.path is not None:
            append_line(self.path, line.to_json(), counted=False)

    def _line(self, number: int, values: JsonObject) -> MeasuredLine:
        try:
            return MeasuredLine.read(values, where=str(self.path))
        except UserError as error:
            raise self._damaged(number) from error

    def _damaged(self, number: int) -> UserError:
        return UserError(f"{self.path}, line {number + 2} is damaged: delete the file to measure anew")

    def remove(self) -> None:
        """Delete the file: a table was made of it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
