"""Records: what is read is what was written, or is refused; files without sums are read and said to be unchecked."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.dying import deaths

from trainonce import files, records
from trainonce.errors import UserError
from trainonce.records import UncheckedWarning, append_line, count_file, read_json, read_lines, to_json, write_lines

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)


class TestJson:
    @settings(deadline=None)
    @given(value=JSON_OBJECTS)
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
        path = tmp_path_factory.getbasetemp() / "round_trip.json"
        path.write_bytes(to_json(value))
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

    def test_a_sum_can_be_computed_without_trainonce(self) -> None:
        rest = b'{\n  "a": 1,\n  "b": {}\n}\n'
        digits = hashlib.sha256(rest).hexdigest()[:16]
        assert to_json({"a": 1, "b": {}}).decode() == f'{{\n  "a": 1,\n  "b": {{}},\n  "sum": "{digits}"\n}}\n'

    def test_a_document_written_again_has_one_sum(self) -> None:
        assert to_json(json.loads(to_json({"a": 1}))) == to_json({"a": 1})

    @pytest.mark.parametrize("value", [{}, {"a": 1}, {"name": "é\\", "n": [1.5, -2e-7], "inner": {"sum": None}}])
    def test_no_flipped_bit_is_believed(self, tmp_path: Path, value: dict[str, Any]) -> None:
        path = tmp_path / "file.json"
        assert believed(path, to_json(value), lambda: read_json(path)) == [value]

    def test_what_was_cut_off_is_not_believed(self, tmp_path: Path) -> None:
        path = tmp_path / "file.json"
        content = to_json({"a": 1, "b": 2})
        for cut in range(len(content)):
            path.write_bytes(content[:cut])
            with pytest.raises(UserError):
                read_json(path)

    def test_one_without_a_sum_is_read_and_said_to_be_unchecked(self, tmp_path: Path) -> None:
        path = tmp_path / "old.json"
        path.write_text('{\n  "a": 1\n}\n')
        with pytest.warns(UncheckedWarning, match=r"old\.json has no sum: it is read unchecked"):
            assert read_json(path) == {"a": 1}

    def test_a_change_by_hand_says_how_to_keep_it(self, tmp_path: Path) -> None:
        path = tmp_path / "file.json"
        path.write_bytes(to_json({"a": 1}).replace(b"1,", b"2,"))
        with pytest.raises(UserError, match=r"changed by hand.* remove its last key, 'sum'"):
            read_json(path)


def flips(content: bytes) -> Iterator[bytes]:
    """Every content that differs in one bit."""
    for place in range(len(content)):
        for bit in range(8):
            yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def believed(path: Path, content: bytes, read: Callable[[], Any]) -> list[Any]:
    """What is read without a word of a file as it is and with each of its bits flipped: distinct values."""
    found = []
    for written in (content, *flips(content)):
        path.write_bytes(written)
        try:
            value = read()
        except (UserError, UncheckedWarning):
            continue
        if value not in found:
            found.append(value)
    path.write_bytes(content)
    return found


class TestLines:
    def test_appended_lines_come_back_in_order(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        assert read_lines(path) == []
        for n in range(3):
            append_line(path, {"n": n, "text": "line\nbreak é\u2028"})
        assert read_lines(path) == [{"n": n, "text": "line\nbreak é\u2028"} for n in range(3)]
        assert path.read_bytes().count(b"\n") == 3
        write_lines(path, [{"n": 7}])
        assert read_lines(path) == [{"n": 7}]

    def test_a_sum_can_be_computed_without_trainonce(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        for n in range(2):
            append_line(path, {"n": n})
        before, expected = hashlib.sha256(b"").hexdigest()[:16], ""
        for n in range(2):
            before = hashlib.sha256(f'{before}\n{{"n": {n}}}'.encode()).hexdigest()[:16]
            expected += f'{{"n": {n}, "sum": "{before}"}}\n'
        assert path.read_text() == expected

    def test_appending_and_replacing_write_the_same(self, tmp_path: Path) -> None:
        values = [{"n": n, "é": [None]} for n in range(3)]
        for value in values:
            append_line(tmp_path / "one", value)
        write_lines(tmp_path / "two", values)
        for file in (Path, count_file):
            assert file(tmp_path / "one").read_bytes() == file(tmp_path / "two").read_bytes()

    @pytest.mark.parametrize("count", [True, False], ids=["counted", "count lost"])
    @pytest.mark.parametrize("values", [[{}], [{"n": 1}], [{"a": "é\\"}, {"sum": 2, "b": 3}, {"c": -1e-5}]])
    def test_no_flipped_bit_is_believed(self, tmp_path: Path, values: list[dict[str, Any]], count: bool) -> None:
        path = tmp_path / "lines"
        for value in values:
            append_line(path, value)
        if not count:
            count_file(path).unlink()
        expected = [{key: inner for key, inner in value.items() if key != "sum"} for value in values]
        assert believed(path, path.read_bytes(), lambda: read_lines(path)) == [expected]
        if count:
            assert believed(count_file(path), count_file(path).read_bytes(), lambda: read_lines(path)) == [expected]

    def test_no_flipped_bit_is_appended_to(self, tmp_path: Path) -> None:
        """Writing on after damage neither hides it nor takes it for a line half-written."""
        path = tmp_path / "lines"
        for n in range(2):
            append_line(path, {"n": n})
        content, count = path.read_bytes(), count_file(path).read_bytes()

        def append_and_read() -> None:
            append_line(path, {"n": 2})
            read_lines(path)

        for damaged in flips(content):
            path.write_bytes(damaged)
            count_file(path).write_bytes(count)
            with pytest.raises(UserError):
                append_and_read()
            assert path.read_bytes().startswith(damaged)

    @pytest.mark.parametrize("order", ["1", "02", "12", "021", "0112", "0122", "0312", "20", ""])
    def test_lines_lost_doubled_and_swapped_are_noticed(self, tmp_path: Path, order: str) -> None:
        path = tmp_path / "lines"
        for n in range(4):
            append_line(path, {"n": n})
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[int(n)] for n in order))
        with pytest.raises(UserError, match="is damaged"):
            read_lines(path)

    def test_lost_last_lines_and_a_lost_file_are_noticed_and_can_be_accepted(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        for n in range(3):
            append_line(path, {"n": n})
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        for work in (read_lines, lambda path: append_line(path, {})):
            with pytest.raises(UserError, match=r"it has 2 lines, and 3 were recorded .* delete .*\.lines\.count\)"):
                work(path)
        path.unlink()
        with pytest.raises(UserError, match="it is missing, and 3 were recorded"):
            read_lines(path)
        count_file(path).unlink()
        assert read_lines(path) == []

    def test_a_link_to_itself_and_one_to_nothing_are_damage(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        with pytest.raises(UserError, match="loop cannot be read: Too many levels of symbolic links"):
            read_lines(tmp_path / "loop")
        (tmp_path / "gone").symlink_to(tmp_path / "nothing")
        with pytest.raises(UserError, match="gone is a link to something that does not exist"):
            read_lines(tmp_path / "gone")

    def test_lines_without_sums_are_read_said_and_appended_to(self, tmp_path: Path) -> None:
        path = tmp_path / "old"
        path.write_text('{"n": 0}\n{"n": 1}\n{"n": ')
        with pytest.warns(UncheckedWarning) as said:
            assert read_lines(path) == [{"n": 0}, {"n": 1}]
        texts = [str(one.message).removeprefix(str(path)) for one in said]
        assert texts == [" has no sums: it is read unchecked", ": half a line at its end is left out"]
        append_line(path, {"n": 2})
        append_line(path, {"n": 3})
        with pytest.warns(UncheckedWarning, match="old has no sums up to line 2: it is read unchecked"):
            assert read_lines(path) == [{"n": n} for n in range(4)]
        # From now on the old lines are covered by the first line that has a sum.
        content = path.read_bytes()
        end = content.index(b'{"n": 2')
        for damaged in flips(content):
            path.write_bytes(damaged)
            with pytest.raises(UserError):
                read_lines(path)
        for cut in range(1, end):
            path.write_bytes(content[cut:])
            with pytest.raises(UserError):
                read_lines(path)

    def test_a_line_without_a_sum_after_one_with_is_damage(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        append_line(path, {"n": 0})
        with path.open("a") as file:
            file.write('{"n": 1}\n')
        with pytest.raises(UserError, match="line 2 is damaged: it has no sum"):
            read_lines(path)

    def test_wherever_a_write_is_cut_whole_lines_survive_and_the_next_follows(self, tmp_path: Path) -> None:
        """A crash leaves half of a line that is not counted; only its newline may be missing."""
        path = tmp_path / "lines"
        append_line(path, {"n": 0, "é": "ü"})
        before, count = path.read_bytes(), count_file(path).read_bytes()
        append_line(path, {"n": 1, "é": "ü"})
        content = path.read_bytes()
        for cut in range(len(before), len(content) + 1):
            path.write_bytes(content[:cut])
            count_file(path).write_bytes(count)
            whole = 2 if cut >= len(content) - 1 else 1
            assert read_lines(path) == [{"n": n, "é": "ü"} for n in range(whole)]
            append_line(path, {"n": "next"})
            assert [line["n"] for line in read_lines(path)] == [*range(whole), "next"]

    def test_half_a_line_where_nothing_is_counted_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        for n in range(2):
            append_line(path, {"n": n})
        count_file(path).unlink()
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.warns(UncheckedWarning, match="half a line at its end is left out"):
            assert read_lines(path) == [{"n": 0}]

    def test_a_file_that_shrinks_while_it_is_read_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "lines"
        for n in range(3):
            append_line(path, {"n": n})
        real, turns = files.read_bytes, [0]

        def meanwhile(file: Path) -> bytes:
            if file == path and not turns[0]:
                turns[0] += 1
                write_lines(path, [{"n": 7}])
            return real(file)

        monkeypatch.setattr(records, "read_bytes", meanwhile)
        assert read_lines(path) == [{"n": 7}]
        assert turns == [1]

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
        values: list[dict[str, Any]] = [{"n": 0, "a": [1, 2]}, {"n": 1}, {"n": 2, "text": "\u00e9"}]
        write_lines(path, values)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        try:
            assert read_lines(path) == values
        except UserError:
            return


class TestDying:
    """A writer that dies before any of its file operations leaves what can be read and gone on with."""

    def test_appending(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        for n in range(2):
            append_line(path, {"n": n})

        def check() -> None:
            lines = read_lines(path)
            assert lines[:2] == [{"n": 0}, {"n": 1}]
            assert lines[2:] in ([], [{"n": 2}])
            append_line(path, {"n": 3})
            assert read_lines(path) == [*lines, {"n": 3}]
            write_lines(path, [{"n": 0}, {"n": 1}])

        assert deaths(lambda: append_line(path, {"n": 2}), check) > 5

    def test_the_first_line(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"

        def check() -> None:
            assert read_lines(path) in ([], [{"n": 0}])
            append_line(path, {"n": 1})
            assert read_lines(path) in ([{"n": 1}], [{"n": 0}, {"n": 1}])
            for file in (path, count_file(path)):
                file.unlink()

        assert deaths(lambda: append_line(path, {"n": 0}), check) > 8

    def test_replacing_by_fewer_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        old, new = [{"n": n} for n in range(3)], [{"n": 0}]
        write_lines(path, old)
        found = []

        def check() -> None:
            found.append(read_lines(path))
            write_lines(path, old)

        assert deaths(lambda: write_lines(path, new), check) > 12
        assert found == sorted(found, key=len, reverse=True)
        assert old in found
        assert new in found
