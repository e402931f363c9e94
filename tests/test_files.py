"""Files that stay whole: replaced at once, appended by whole lines, read with a sentence for damage."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce import files
from trainonce.errors import UserError
from trainonce.files import append_line, read_json, read_lines, to_json, write_atomic, write_lines

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)


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


class TestJson:
    @given(value=JSON_OBJECTS)
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
        path = tmp_path_factory.getbasetemp() / "round_trip.json"
        try:
            path.write_bytes(to_json(value))
        except UnicodeEncodeError:  # a lone surrogate is no text
            return
        assert read_json(path) == value

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_json_cannot_hold_is_refused(self, tmp_path: Path, value: float) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json({"loss": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            append_line(tmp_path / "lines", {"loss": value})
        assert read_lines(tmp_path / "lines") == []

    @pytest.mark.parametrize(
        ("content", "wrong"),
        [
            (b"", "is not a JSON file"),
            (b'{"a": 1', "is not a JSON file"),
            (b"\xff\xfe\xfa", "is not a JSON file"),
            (b"[" * 100_000, "is not a JSON file"),
            (b"9" * 5000, "is not a JSON file"),
            (b"[1]", "holds a JSON list where an object belongs"),
            (b"null", "holds a JSON NoneType where an object belongs"),
        ],
    )
    def test_damage_is_a_sentence(self, tmp_path: Path, content: bytes, wrong: str) -> None:
        path = tmp_path / "file.json"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"file.json {wrong}"):
            read_json(path)

    def test_a_missing_file_is_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"cannot read .*nothing\.json: No such file"):
            read_json(tmp_path / "nothing.json")
        with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
            read_json(tmp_path)


class TestLines:
    def test_appended_lines_come_back_in_order(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        assert read_lines(path) == []
        for n in range(3):
            append_line(path, {"n": n, "text": "line\nbreak é\u2028"})
        assert read_lines(path) == [{"n": n, "text": "line\nbreak é\u2028"} for n in range(3)]
        assert path.read_bytes().count(b"\n") == 3
        write_lines(path, [{"n": 7}])
        assert path.read_bytes() == b'{"n": 7}\n'

    def test_wherever_a_write_is_cut_whole_lines_survive_and_the_next_follows(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        for n in range(3):
            append_line(path, {"n": n, "é": "ü"})
        content = path.read_bytes()
        for cut in range(len(content) + 1):
            path.write_bytes(content[:cut])
            whole = content[:cut].count(b"\n")
            assert read_lines(path) == [{"n": n, "é": "ü"} for n in range(whole)]
            append_line(path, {"n": "next"})
            assert [line["n"] for line in read_lines(path)] == [*range(whole), "next"]

    def test_a_damaged_line_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        path.write_bytes(b'{"n": 0}\n{"n": \n{"n": 2}\n')
        with pytest.raises(UserError, match="lines, line 2 is not JSON"):
            read_lines(path)
        path.write_bytes(b'{"n": 0}\n{"n": 1}\n3\n')
        with pytest.raises(UserError, match="lines, line 3 is not a JSON object"):
            read_lines(path)

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_fuzz(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        damaged: Callable[[bytes], st.SearchStrategy[bytes]],
        data: st.DataObject,
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzzed_lines"
        content = data.draw(damaged(b'{"n": 0, "a": [1, 2]}\n{"n": 1}\n{"n": 2, "text": "\\u00e9"}\n'))
        path.write_bytes(content)
        try:
            lines = read_lines(path)
        except UserError:
            return
        # What is accepted is what plain json reads from each line that has an end.
        assert repr(lines) == repr([json.loads(line) for line in content.split(b"\n")[:-1]])


DISK_FULL = """
import json, resource, signal, sys
from pathlib import Path
from trainonce.files import append_line, read_lines, write_atomic

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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "lines"]
