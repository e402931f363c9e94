"""Files: replaced at once, so that every state that a death leaves is the old one or the new; reading with a sentence.

A file or directory is written under a hidden name of its own beside its place (`.NAME.0123456789ab.partial`) and then
takes it. Those that dead writers left are removed by the next one: a file's is locked while its writer lives, and of a
directory there is one writer at a time.
"""

import ctypes
import errno
import io
import lzma
import os
import re
import secrets
import shutil
import stat
import struct
import sys
import tempfile
import time
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainonce.errors import UserError
from trainonce.limits import refuse_beyond_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


PATIENCE_S = 5.0
"""How long a writer waits for another one of the same place."""
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)

_SMALL_FILE = 2**20
"""Bytes that are read without asking how much memory there is, which takes longer than reading them."""

LARGEST_NUMBER = 1e30
"""Numbers in records are smaller than this, on either side of zero: what reads them refuses others as damage."""


def fits_record(number: float) -> bool:
    """Whether a number can stand in a record: it is finite and not beyond `LARGEST_NUMBER`."""
    return abs(number) < LARGEST_NUMBER


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or the whole new one, on disk before this returns."""
    with _partial_file(path) as partial:
        write_synced(partial, content)
        partial.replace(path)
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


def is_there(path: Path) -> bool:
    """Whether a file or directory is there. Raises `UserError` where that cannot be told, as for a link to nothing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise UserError(f"{path} is a link to something that does not exist") from error
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return True


@contextmanager
def partial_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path` to be filled and put in its place; removed at the end, unless it took that.

    Other writers of `path` are kept out meanwhile. Raises `UserError` where one goes on for longer than
    `PATIENCE_S` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer(path):
        _clear(path)
        partial = _partial_name(path)
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, path: Path) -> None:
    """Let a directory take the place of another, which then is where the first one was; or one where nothing is."""
    sync_directory(partial)
    if not path.exists():
        partial.rename(path)
    elif not exchange(partial, path):
        before = _before(path)
        path.rename(before)
        try:
            partial.rename(path)
        except OSError:
            before.rename(path)
            raise
        before.rename(partial)
    sync_directory(path.parent)


def standing(path: Path) -> Path:
    """Where a directory is: at `path`, or beside it if a death between two renames left it there."""
    return path if path.exists() or not path.name or not _before(path).exists() else _before(path)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change their names in one step; gives whether this system and file system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        result = libc.renamex_np(*paths, _RENAME_SWAP)
    elif hasattr(libc, "renameat2"):
        result = libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    else:
        return False
    code = ctypes.get_errno()
    if result and code not in _NOT_SUPPORTED:
        raise OSError(code, os.strerror(code), str(other))
    return not result


def _before(path: Path) -> Path:
    return path.with_name(f".{path.name}.before")


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


def _partials(path: Path) -> list[Path]:
    """What writers of a path have not finished, living or dead; the name without digits is an earlier version's."""
    form = re.compile(rf"\.{re.escape(path.name)}(\.[0-9a-f]{{12}})?\.partial")
    return [entry for entry in path.parent.iterdir() if form.fullmatch(entry.name)]


def _clear(path: Path) -> None:
    """Remove what dead writers of a directory left; bring back what one of them had put aside."""
    for partial in _partials(path):
        shutil.rmtree(partial)
    if _before(path).exists():
        if path.exists():
            shutil.rmtree(_before(path))
        else:
            _before(path).rename(path)


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Keep other writers from a path, with a locked file beside it that is gone afterwards."""
    file, deadline = path.with_name(f".{path.name}.lock"), time.monotonic() + PATIENCE_S
    while (handle := _locked_handle(file, os.O_CREAT)) is None:
        if time.monotonic() > deadline:
            raise UserError(f"another process is writing {path}")
        time.sleep(0.02)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def _partial_file(path: Path) -> Iterator[Path]:
    """A new locked file beside `path`; removed at the end, unless it was renamed. Those of dead writers go as well."""
    for leftover in _partials(path):
        with suppress(OSError):  # it is gone already, or another's
            handle = _locked_handle(leftover)
            if handle is not None:
                leftover.unlink()
                os.close(handle)
    while (handle := _locked_handle(partial := _partial_name(path), os.O_CREAT | os.O_EXCL)) is None:
        pass  # taken for a dead writer's between its making and its locking
    try:
        yield partial
    finally:
        os.close(handle)
        partial.unlink(missing_ok=True)


def _locked_handle(file: Path, flags: int = 0) -> int | None:
    """A handle that keeps a file locked; None where another process does, or has removed it meanwhile."""
    handle, held = os.open(file, os.O_RDWR | flags, 0o666), False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(handle), file.stat())
    except (BlockingIOError, FileNotFoundError):
        return None
    finally:
        if not held:
            os.close(handle)
    return handle if held else None


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
        size = path.stat().st_size
        if size > _SMALL_FILE:
            refuse_beyond_memory(size, f"the bytes of {path}")
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
        raise UserError(f"{path} is damaged: it is not a whole zip archive ({error})") from error
    if member is not None:
        raise UserError(f"{path} is damaged: its {member} does not fit the sum that was written with it")
    return summed


def read_arrays(path: Path) -> "dict[str, NDArray[Any]]":
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


def _array(content: bytes, where: str) -> "NDArray[Any]":
    """The array of an .npy file's bytes."""
    import numpy as np  # only here: the command line, which has no arrays, starts without it

    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # numpy's, of headers of Python 2
            array = np.load(io.BytesIO(content), allow_pickle=False)
    except _NPY_ERRORS as error:
        raise UserError(f"{where} is not a plain array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{where} is an archive, not an array")
    return array
