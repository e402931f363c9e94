"""Files that stay whole: replaced at once, appended by whole lines, read with a sentence for damage."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.support.dying import deaths

from trainonce import files
from trainonce.errors import UserError
from trainonce.files import partial_directory, put_in_place, standing, write_atomic, write_synced


class TestAtomic:
    def test_replaces_the_whole_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        write_atomic(path, b"a long first content")
        write_atomic(path, b"short")
        assert path.read_bytes() == b"short"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "file"
        write_atomic(path, b"old")

        def half(target: Path, content: bytes) -> None:
            target.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "write_synced", half)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(path, b"new and longer")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_the_new_content_is_on_disk_before_it_takes_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[str] = []
        real_fsync, real_replace = os.fsync, Path.replace

        def fsync(handle: int) -> None:
            events.append("synced")
            real_fsync(handle)

        def replace(source: Path, target: Path) -> Path:
            events.append("renamed")
            return real_replace(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        write_atomic(tmp_path / "file", b"content")
        assert events == ["synced", "renamed", "synced"]


class TestTwoWriters:
    def test_a_file_that_is_being_written_is_left_alone_and_a_dead_writers_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        dead = [tmp_path / name for name in (".file.0123456789ab.partial", ".file.partial")]
        others = [tmp_path / name for name in (".file.other.partial", ".other.0123456789ab.partial", "file.partial")]
        for leftover in (*dead, *others):
            leftover.write_bytes(b"half")
        real, seen = files.write_synced, list[bytes]()

        def meanwhile(partial: Path, content: bytes) -> None:
            real(partial, content)
            if content == b"first":
                write_atomic(path, b"second")
                seen.append(partial.read_bytes())

        monkeypatch.setattr(files, "write_synced", meanwhile)
        write_atomic(path, b"first")
        assert seen == [b"first"]
        assert path.read_bytes() == b"first"
        assert sorted(tmp_path.iterdir()) == sorted([path, *others])

    def test_one_writer_of_a_directory_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "PATIENCE_S", 0.1)
        path = tmp_path / "place"
        second = partial_directory(path)
        with partial_directory(path), pytest.raises(UserError, match=r"another process is writing .*place"):
            second.__enter__()
        with partial_directory(path), partial_directory(tmp_path / "other"):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_a_waiting_writer_gets_its_turn(self, tmp_path: Path) -> None:
        path, turns = tmp_path / "place", list[str]()

        def write(name: str) -> None:
            with partial_directory(path) as partial:
                turns.append(name)
                time.sleep(0.05)
                turns.append(name)
                (partial / name).touch()
                put_in_place(partial, path)

        threads = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert turns[::2] == turns[1::2]
        assert [entry.name for entry in path.iterdir()] == [turns[-1]]
        assert list(tmp_path.iterdir()) == [path]


class TestDying:
    """A writer that dies before any of its file operations leaves the old or the new, whole and found."""

    def test_a_file(self, tmp_path: Path) -> None:
        path, found = tmp_path / "file", []
        write_atomic(path, b"old")

        def check() -> None:
            found.append(path.read_bytes())
            write_atomic(path, b"old")
            assert list(tmp_path.iterdir()) == [path]

        assert deaths(lambda: write_atomic(path, b"new"), check) > 8
        assert set(found) == {b"old", b"new"}

    @pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "renamed twice"])
    def test_a_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
        if not at_once:
            monkeypatch.setattr(files, "exchange", lambda *_: False)
        path, found = tmp_path / "place", []

        def write(content: str) -> None:
            with partial_directory(path) as partial:
                for name in "ab":
                    write_synced(partial / name, content.encode())
                put_in_place(partial, path)

        def check() -> None:
            assert path.exists() or not at_once
            found.append({file.name: file.read_text() for file in standing(path).iterdir()})
            write("old")
            assert list(tmp_path.iterdir()) == [path]

        write("old")
        assert deaths(lambda: write("new"), check) > 20
        assert found[0] == {"a": "old", "b": "old"}
        assert found[-1] == {"a": "new", "b": "new"}
        assert all(one in (found[0], found[-1]) for one in found)

    def test_this_system_can_exchange(self, tmp_path: Path) -> None:
        one, other = tmp_path / "one", tmp_path / "other"
        one.mkdir()
        other.write_text("file")
        assert files.exchange(one, other)
        assert other.is_dir()
        with pytest.raises(FileNotFoundError):
            files.exchange(one, tmp_path / "nothing")


DISK_FULL = """
import json, resource, signal, sys
from pathlib import Path
from trainonce.files import write_atomic
from trainonce.records import append_line, read_lines

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
write_atomic(folder / "file", b"old")
append_line(folder / "lines", {"n": 0})
refused = []
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for work in (
    lambda: write_atomic(folder / "file", b"x" * 1000),
    lambda: append_line(folder / "lines", {"n": "x" * 1000}),
):
    try:
        work()
    except OSError as error:
        refused.append(error.strerror)
left = (folder / "lines").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
lines = read_lines(folder / "lines")
append_line(folder / "lines", {"n": 1})
print(json.dumps([refused, left, lines, read_lines(folder / "lines")]))
"""


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    refused, left, lines, after = json.loads(result.stdout)
    assert refused == ["File too large"] * 2
    assert left == 100  # the disk did fill in the middle of the line
    assert lines == [{"n": 0}]
    assert after == [{"n": 0}, {"n": 1}]
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lines.count", "file", "lines"]
