"""The downloader, against files and a server on this machine: whole and checked, or not there at all."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainonce.data.download import PublishedFile, fetch, missing_sentence
from trainonce.errors import UserError

CONTENT = b"images " * 300_000  # over one chunk


def published(path: Path, members: tuple[str, ...] = ()) -> PublishedFile:
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    return PublishedFile(url=path.as_uri(), checksum=checksum, members=members)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "server" / "images.gz"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def tar_of(path: Path, files: dict[str, bytes], link: tuple[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(member)
    return path


class TestFetch:
    def test_one_file(self, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "data" / "mnist"
        fetch(published(source), target)
        assert (target / "images.gz").read_bytes() == CONTENT
        assert [path.name for path in target.iterdir()] == ["images.gz"]

    @pytest.mark.parametrize("kind", ["sha1", "sha256"])
    def test_other_checksums(self, source: Path, tmp_path: Path, kind: str) -> None:
        checksum = hashlib.new(kind, CONTENT).hexdigest()
        fetch(PublishedFile(url=source.as_uri(), checksum=checksum), tmp_path / "data")
        assert (tmp_path / "data" / "images.gz").exists()

    def test_wrong_checksum_leaves_nothing(self, source: Path, tmp_path: Path) -> None:
        file = PublishedFile(url=source.as_uri(), checksum="0" * 32)
        with pytest.raises(UserError, match=rf"checksum \w+ instead of 0+: fetch {file.url} by hand and put it into"):
            fetch(file, tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []

    def test_unreachable(self, tmp_path: Path) -> None:
        file = PublishedFile(url=(tmp_path / "nowhere.gz").as_uri(), checksum="0" * 32)
        with pytest.raises(UserError, match=r"could not download file:.*nowhere\.gz by hand and put it into .*data$"):
            fetch(file, tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []

    def test_a_folder_that_cannot_be_made(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("a file is in the way")
        with pytest.raises(UserError, match="could not download"):
            fetch(published(source), tmp_path / "data")


class TestArchive:
    def test_members_by_their_bare_names(self, tmp_path: Path) -> None:
        files = {"cifar/train.bin": b"1", "cifar/test.bin": b"2", "cifar/readme.html": b"3"}
        archive = tar_of(tmp_path / "a.tar.gz", files)
        target = tmp_path / "data" / "cifar"
        fetch(published(archive, ("cifar/train.bin", "cifar/test.bin")), target)
        assert {p.name: p.read_bytes() for p in target.iterdir()} == {"train.bin": b"1", "test.bin": b"2"}

    def test_missing_member(self, tmp_path: Path) -> None:
        archive = tar_of(tmp_path / "a.tar.gz", {"cifar/train.bin": b"1"})
        with pytest.raises(UserError, match=r"could not be unpacked.*put train.bin, test.bin from it into"):
            fetch(published(archive, ("cifar/train.bin", "cifar/test.bin")), tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []

    def test_not_an_archive(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="could not be unpacked"):
            fetch(published(source, ("a",)), tmp_path / "data")

    def test_a_link_that_leads_out_is_refused(self, tmp_path: Path) -> None:
        archive = tar_of(tmp_path / "a.tar.gz", {}, link=("cifar/train.bin", "../../../../../etc/passwd"))
        with pytest.raises(UserError, match="could not be unpacked"):
            fetch(published(archive, ("cifar/train.bin",)), tmp_path / "data")


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: 100 if self.path == "/cut" else None])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


class TestHttp:
    @pytest.fixture(autouse=True)
    def no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    def test_one_file(self, server: str, tmp_path: Path) -> None:
        file = PublishedFile(url=f"{server}/whole", checksum=hashlib.md5(CONTENT).hexdigest())
        fetch(file, tmp_path)
        assert (tmp_path / "whole").read_bytes() == CONTENT

    def test_cut_off_and_missing(self, server: str, tmp_path: Path) -> None:
        for path, wrong in (("cut", "arrived with the checksum|IncompleteRead"), ("missing", "404")):
            file = PublishedFile(url=f"{server}/{path}", checksum=hashlib.md5(CONTENT).hexdigest())
            with pytest.raises(UserError, match=wrong):
                fetch(file, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_missing_sentence(tmp_path: Path) -> None:
    file = PublishedFile(url="http://x/y.gz", checksum="0" * 32)
    sentence = missing_sentence(file, tmp_path / "y.gz")
    assert sentence == f"{tmp_path}/y.gz does not exist: fetch http://x/y.gz by hand and put it into {tmp_path}"
