"""Records: JSON documents and JSON lines that carry sums, so that damage is noticed where they are read.

A document's last key is `sum`: the first 16 hexadecimal digits of the SHA-256 of its bytes without that key. So is a
line's, of the sum of the line before it, a newline, and its own bytes without the key: lines that are changed, lost in
the middle, swapped or added are noticed. What stands before the first line with a sum counts for that line as its
predecessor, with the same digits of its SHA-256; so does nothing at all.

How many lines there were is kept beside a file of lines, in a hidden file: lost last lines, and a lost file, are
noticed by it. It is written after the line is on disk and therefore says "at least".

Files of before there were sums are read with an `UncheckedWarning`.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainonce.errors import UserError
from trainonce.files import is_there, read_bytes, write_atomic

SUM = "sum"
DIGITS = 16
_DOCUMENT_KEY, _DOCUMENT_END = b'\n  "sum": "', b'"\n}\n'
_LINE_KEY, _LINE_END = b'"sum": "', b'"}'
_SEALED = re.compile(rb'"sum": "[0-9a-f]{16}"\}')
_COUNT_BYTES = 96
"""The size of every file that counts lines: it is written in one place again and again."""
_TURNS = 3
"""How often a file that is being rewritten is read until what was read belongs together."""


class UncheckedWarning(UserWarning):
    """A file that has no sums was believed as it is."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What a file of lines holds."""

    texts: list[bytes]
    """The lines without their sums, JSON as it was written."""
    unchecked: int
    """How many of them, the first ones, have no sum."""
    last: str
    """What the next line's sum is made with."""
    counted: bool
    """Whether it is recorded beside the file how many there were at least."""
    half: bytes
    """What follows the last whole line: half of one that was being written."""
    ended: bool
    """Whether the last whole line has its newline."""


# Documents


def to_json(value: Mapping[str, Any]) -> bytes:
    """A document: indented JSON with the key `sum` at its end, which replaces one that is there."""
    unsummed = {key: inner for key, inner in value.items() if key != SUM}
    rest = plain_json(unsummed)
    before = rest.removesuffix(b"\n}\n") + b"," if unsummed else b"{"
    return before + _DOCUMENT_KEY + _digest(rest).encode() + _DOCUMENT_END


def plain_json(value: Mapping[str, Any]) -> bytes:
    """Indented JSON with a final newline and no sum: for what something else has the hash of."""
    return _encoded(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _encoded(text: str) -> bytes:
    """JSON in UTF-8; half a character, as paths that are not UTF-8 have, becomes JSON's own escape for it."""
    return text.encode(errors="backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """The values of a document, without its sum. Warns where it has none.

    Raises `UserError` that names a file that is damaged or is no document.
    """
    value, checked = read_document(path)
    if not checked:
        say_unchecked(path)
    return value


def say_unchecked(path: Path) -> None:
    """Warn that a document without a sum was believed as it is."""
    warnings.warn(UncheckedWarning(f"{path} has no sum: it is read unchecked"), stacklevel=1)


def read_document(path: Path) -> tuple[dict[str, Any], bool]:
    """The values of a document, without its sum, and whether it has one. Raises `UserError` as `read_json` does."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    rest = content
    start, end = content.rfind(_DOCUMENT_KEY), len(content) - len(_DOCUMENT_END)
    checked = start + len(_DOCUMENT_KEY) + DIGITS == end and content.endswith(_DOCUMENT_END)
    if checked:
        rest = b"{}\n" if start == 1 else content[:start].removesuffix(b",") + b"\n}\n"
        if _digest(rest).encode() != content[end - DIGITS : end]:
            raise UserError(
                f"{path} is damaged, or was changed by hand: its content is not what its sum was made of (after a "
                f"change on purpose, remove its last key, {SUM!r})"
            )
    try:
        value = json.loads(rest.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__} where an object belongs")
    if not checked and _lost_sum(value):
        raise UserError(f"{path} is damaged: its sum is not as it was written")
    return value, checked


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _lost_sum(value: Mapping[str, Any]) -> bool:
    """Whether an object without a sum in its place had one before it was damaged, as its key or its value tells."""
    last = list(value.values())[-1] if value else None
    return SUM in value or (isinstance(last, str) and len(last) == DIGITS)


# Lines


def append_line(path: Path, value: Mapping[str, Any], *, counted: bool = True) -> None:
    """Append one JSON object as a line, on disk before this returns, and count it.

    A line that an earlier process left half-written is cut off first. A file whose lost last lines are made anew need
    not be `counted`. Raises `UserError` where what is there already is damaged.
    """
    with path.open("ab+") as file:
        size = file.tell()
        count = _count_in(_count_written(path), path) if counted else None
        last = _last_sum(file, size)
        if last is None or (counted and (count is None or count.last != last)):
            found = read_all(path)
            file.truncate(size - len(found.half))
            last, count = found.last, _Count(lines=len(found.texts), last=found.last)
            file.write(b"" if found.ended else b"\n")
        line, digest = _sealed(value, last)
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if counted:
        assert count is not None
        _write_count(path, _Count(lines=count.lines + 1, last=digest))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, without their sums; none if there is no file.

    Warns and raises `UserError` as `read_texts` does, and where a line is no JSON object.
    """
    return objects(read_texts(path), path)


def objects(texts: Iterable[bytes], path: Path) -> list[dict[str, Any]]:
    """The JSON objects of the lines of a file. Raises `UserError` that names the line that is none."""
    return [_object(text, f"{path}, line {number}") for number, text in enumerate(texts, start=1)]


def read_texts(path: Path) -> list[bytes]:
    """The lines of a file as they were written, without their sums; none if there is no file.

    A half-written last line is left out. Warns where lines are unchecked, and where that last line may once have been
    whole. Raises `UserError` that names the file and the line that is damaged, and where last lines are lost.
    """
    found = read_all(path)
    if found.unchecked:
        what = "no sums" if found.unchecked == len(found.texts) else f"no sums up to line {found.unchecked}"
        warnings.warn(UncheckedWarning(f"{path} has {what}: it is read unchecked"), stacklevel=1)
    if found.half and not found.counted:
        warnings.warn(UncheckedWarning(f"{path}: half a line at its end is left out"), stacklevel=1)
    return found.texts


def read_all(path: Path) -> Lines:
    """All that a file of lines holds, checked; nothing if there is no file.

    Raises `UserError` that names the file and the line that is damaged, and where last lines are lost.
    """
    for turn in range(_TURNS):
        written = _count_written(path)  # before the lines: it says how many there are at least
        try:
            return _parse(path, read_bytes(path) if is_there(path) else b"", _count_in(written, path))
        except UserError:
            if turn == _TURNS - 1 or _count_written(path) == written:
                raise
    raise AssertionError


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of lines, atomically, and their count."""
    last, lines = _digest(b""), list[bytes]()
    for value in values:
        line, last = _sealed(value, last)
        lines.append(line + b"\n")
    _write_count(path, _Count(lines=0, last=_digest(b"")), synced=True)  # there may be fewer than before
    write_atomic(path, b"".join(lines))
    _write_count(path, _Count(lines=len(lines), last=last))


def _sealed(value: Mapping[str, Any], last: str) -> tuple[bytes, str]:
    """A line without its newline, and its sum."""
    unsummed = {key: inner for key, inner in value.items() if key != SUM}
    rest = _encoded(json.dumps(unsummed, ensure_ascii=False, allow_nan=False))
    digest = _digest(last.encode() + b"\n" + rest)
    comma = b"" if rest == b"{}" else b", "
    return rest[:-1] + comma + _LINE_KEY + digest.encode() + _LINE_END, digest


def _unsealed(line: bytes) -> tuple[bytes, str] | None:
    """A line as it was before it got its sum, and the sum that it says it has; None where it has none."""
    start, end = len(line) - len(_LINE_END) - DIGITS - len(_LINE_KEY), len(line) - len(_LINE_END)
    if start < 1 or not line.endswith(_LINE_END) or not line.startswith(_LINE_KEY, start):
        return None
    return line[:start].removesuffix(b", ") + b"}", line[end - DIGITS : end].decode(errors="replace")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object")
    return value


def _last_sum(file: IO[bytes], size: int) -> str | None:
    """The sum of the last line where the file ends with a line that has one; of no lines where it is empty."""
    length = len(_LINE_KEY) + DIGITS + len(_LINE_END) + 2
    file.seek(max(0, size - length))
    end = file.read(length)
    found = _unsealed(end[:-1]) if end.endswith(b"\n") else None
    return _digest(b"") if size == 0 else found and found[1]


def _parse(path: Path, content: bytes, count: "_Count | None") -> Lines:
    """The lines, each held against its sum, and all of them against their count."""
    whole, newline, half = content.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    ended = _unsealed(half) is None
    if not ended:
        lines, half = [*lines, half], b""
    if _SEALED.search(half):
        raise UserError(f"{path}, line {len(lines) + 1} is damaged: it does not end as it was written")
    texts, sums, place, unchecked = list[bytes](), [_digest(b"")], 0, 0
    for number, line in enumerate(lines, start=1):
        where, found = f"{path}, line {number}", _unsealed(line)
        before = sums[-1] if number > unchecked + 1 else _digest(content[:place])
        if found is not None and _digest(before.encode() + b"\n" + found[0]) != found[1]:
            raise UserError(f"{where} is damaged, or a line before it is lost: its sum is not the recorded one")
        if found is None:
            if _lost_sum(_object(line, where)) or unchecked < number - 1:
                raise UserError(f"{where} is damaged: it has no sum, or not as it was written")
            unchecked = number
        texts.append(line if found is None else found[0])
        sums.append("" if found is None else found[1])
        place += len(line) + 1
    if count is not None:
        _refuse_lost(path, sums, count)
    last = sums[-1] or _digest(content[:place])
    return Lines(texts=texts, unchecked=unchecked, last=last, counted=count is not None, half=half, ended=ended)


# How many lines there were


@dataclass(frozen=True, kw_only=True)
class _Count:
    """How many lines a file has at least, and the sum of the last of them."""

    lines: int
    last: str


def count_file(path: Path) -> Path:
    """Where it is written how many lines a file has."""
    return path.with_name(f".{path.name}.count")


def _count_written(path: Path) -> bytes:
    """What the file that counts a file's lines holds; nothing where there is none."""
    file = count_file(path)
    return read_bytes(file) if is_there(file) else b""


def _count_in(written: bytes, path: Path) -> _Count | None:
    """What was written of a file's lines; None where nothing was. Raises `UserError` where that is damaged."""
    if not written:
        return None
    file = count_file(path)
    found = _unsealed(written.rstrip(b" \n"))
    if found is None or _digest(b"\n" + found[0]) != found[1]:
        raise UserError(f"{file} is damaged: delete it where {path.name} is known to be whole")
    return _Count(**_object(found[0], str(file)))


def _write_count(path: Path, count: _Count, *, synced: bool = False) -> None:
    """Write down how many lines a file has. What a crash leaves is this or an earlier count, unless it was `synced`."""
    line, _ = _sealed(vars(count), "")
    handle = os.open(count_file(path), os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(handle, line.ljust(_COUNT_BYTES - 1) + b"\n", 0)
        if synced:
            os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_lost(path: Path, sums: list[str], count: _Count) -> None:
    """Raise `UserError` where there are fewer lines than were counted, or the one counted last is another one."""
    there = len(sums) - 1
    if count.lines > there or sums[count.lines] != count.last:
        how = f"has {there} lines" if is_there(path) else "is missing"
        if count.lines <= there:
            how = f"has another line {count.lines}"
        raise UserError(
            f"{path} is damaged: it {how}, and {count.lines} were recorded (to go on with what is there, delete "
            f"{count_file(path)})"
        )
