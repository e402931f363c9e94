"""Fetching published files: checksum first, then an atomic move into place."""

import hashlib
import http.client
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trainonce.errors import UserError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0  # without any byte arriving
_HASHES = {32: "md5", 40: "sha1", 64: "sha256"}  # by the length of the checksum in hexadecimal


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file on the publisher's server: where it is and what it must hash to.

    `checksum` is an MD5, SHA-1 or SHA-256 in hexadecimal. Where `members` is empty the file itself is wanted;
    else it is a tar archive, and `members` are the paths inside it that are wanted.
    """

    url: str
    checksum: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return PurePosixPath(self.url).name


def fetch(file: PublishedFile, folder: Path) -> None:
    """Download a published file into `folder`, or the members of an archive, each by its bare name.

    Files appear whole or not at all, and only with the right checksum. Raises `UserError` that says what to
    fetch by hand and where to put it, where the network, the checksum or the disk says no.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            partial = Path(temporary) / "partial"
            found = _download(file, partial)
            if found != file.checksum:
                raise UserError(
                    f"{file.url} arrived with the checksum {found} instead of {file.checksum}: {_by_hand(file, folder)}"
                )
            if file.members:
                _extract(file, partial, folder)
            else:
                partial.replace(folder / file.name)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"could not download {file.url} ({error}): {_by_hand(file, folder)}") from error


def missing_sentence(file: PublishedFile, wanted: Path) -> str:
    """Say that `wanted` is not there and how to get it."""
    return f"{wanted} does not exist: {_by_hand(file, wanted.parent)}"


def _by_hand(file: PublishedFile, folder: Path) -> str:
    names = ", ".join(PurePosixPath(member).name for member in file.members)
    what = f"put {names} from it" if names else "put it"
    return f"fetch {file.url} by hand and {what} into {folder}"


def _download(file: PublishedFile, target: Path) -> str:
    """Write the file to `target`, with a progress bar on a terminal; give its checksum in hexadecimal."""
    digest = hashlib.new(_HASHES[len(file.checksum)], usedforsecurity=False)
    columns = (TextColumn(file.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    with bar, urllib.request.urlopen(file.url, timeout=TIMEOUT_S) as response, target.open("wb") as out:
        length = response.headers.get("Content-Length", "")
        task = bar.add_task(file.name, total=int(length) if length.isdecimal() else None)
        while chunk := response.read(CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
            bar.advance(task, len(chunk))
    return digest.hexdigest()


def _extract(file: PublishedFile, archive: Path, folder: Path) -> None:
    """Put the wanted members of a tar archive into `folder`; links and paths that lead out are refused."""
    unpacked = archive.with_name("unpacked")
    try:
        with tarfile.open(archive) as tar:
            for member in file.members:
                tar.extract(member, unpacked, filter="data")
    except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        raise UserError(f"{file.url} could not be unpacked ({error}): {_by_hand(file, folder)}") from error
    for member in file.members:
        (unpacked / member).replace(folder / PurePosixPath(member).name)
