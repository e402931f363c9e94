"""Files: atomic replacement and append-only JSON lines, so that what was there stays whole; reading with a sentence."""

import io
import json
import lzma
import os
import stat
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainonce.errors import UserError
from trainonce.limits import refuse_beyond_memory

try:
    import fcntl
except ModuleNotFoundError:
    raise UserError(
        "this system is not supported: run directories are locked with fcntl, which Linux and macOS have; "
        "on Windows, use the Windows Subsystem for Linux"
    ) from None

# What the standard library and numpy raise on bytes that are not what they claim to be.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, KeyError, IndexError, OverflowError, RuntimeError),
)
_NPY_ERRORS = (
    *(ValueError, TypeError, SyntaxError, tokenize.TokenError, EOFError),
    *(OverflowError, MemoryError, RecursionError),
)


LARGEST_NUMBER = 1e30
"""Numbers in records are smaller than this, on either side of zero: what reads them refuses others as damage."""


def fits_record(number: float) -> bool:
    """Whether a number can stand in a record: it is finite and not beyond `LARGEST_NUMBER`."""
    return abs(number) < LARGEST_NUMBER


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or the whole new one, on disk before this returns."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_synced(partial, content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the directory's entries are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return _encoded(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _encoded(text: str) -> bytes:
    """JSON in UTF-8; half a character, as paths that are not UTF-8 have, becomes JSON's own escape for it."""
    return text.encode(errors="backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__} where an object belongs")
    return value


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, on disk before this returns.

    A line that an earlier process left half-written is cut off first.
    """
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(_encoded(json.dumps(dict(value), ensure_ascii=False, allow_nan=False)) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; none if there is no file; a half-written last line is left out.

    Raises `UserError` that names the file and the line that is damaged.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    values = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number} is not a JSON object")
        values.append(value)
    return values


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines, atomically."""
    lines = (json.dumps(dict(value), ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    write_atomic(path, _encoded("".join(lines)))


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Keep other processes from locking a file meanwhile; it is made where it is not there.

    Raises `UserError(refusal)` if one holds it. The lock ends with the process, however that ends.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        yield


def private_folder() -> Path:
    """This user's own folder for temporary files, in which nobody else can write; made where it is not there.

    Raises `OSError` where it cannot be made, or where somebody else can write in what has its name.
    """
    folder = Path(tempfile.gettempdir(), f"trainonce-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~NAME replaced by home directories. Raises `UserError` where there is no such directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} names a home directory that is not there") from error


def read_bytes(path: Path) -> bytes:
    """Give a file's bytes, or raise `UserError` that says why it cannot be read, or that the memory is too small."""
    try:
        refuse_beyond_memory(path.stat().st_size, f"the bytes of {path}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def check_zip(path: Path) -> bool:
    """Compare a zip archive's members with the sums in its directory; whether there was anything to compare.

    There is not in a file of another kind, nor where all sums are 0, as torch writes them if told to leave them out.
    Raises `UserError` that names the file, and the member that is damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            summed = any(member.CRC for member in archive.infolist())
            member = archive.testzip() if summed else None
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is damaged: it is no whole zip archive ({error})") from error
    if member is not None:
        raise UserError(f"{path} is damaged: its {member} does not fit the sum that was written with it")
    return summed


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, without pickle. Raises `UserError` that names the file and the key.

    What the archive says of its members' sizes is compared with the memory there is before anything is inflated, and
    nothing is inflated beyond it.
    """
    data = read_bytes(path)
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            # Each member is held twice for a moment, as bytes and as an array.
            needed = sum(member.file_size for member in members) + max((m.file_size for m in members), default=0)
            refuse_beyond_memory(needed, f"the arrays of {path}")
            for member in members:
                with archive.open(member) as file:
                    content = file.read(member.file_size)  # to its end: this checks its CRC before numpy looks at it
                key = member.filename.removesuffix(".npy")
                arrays[key] = _array(content, f"{path}: '{key}'")
    except UserError:
        raise
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is not a whole npz (zip) archive: {error}") from error
    return arrays


def _array(content: bytes, where: str) -> NDArray[Any]:
    """The array of an .npy file's bytes."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except _NPY_ERRORS as error:
        raise UserError(f"{where} is not a plain array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{where} is an archive, not an array")
    return array
