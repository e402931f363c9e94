"""Files of every kind are damaged at random, and nothing is believed: a part of `make fuzz`; and the harness itself."""

import os
import random
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
from tests.fuzzing import harness
from tests.fuzzing.damage import WAYS, draw, restore
from tests.fuzzing.harness import FAULTS, fuzz
from tests.fuzzing.kinds import KINDS, Kind, seen
from tests.fuzzing.material import make

from trainonce.errors import UserError

TEXT = b'{"n": 12}\n{"n": 34}\n{"n": 56}\n'


class TestDamage:
    def test_every_way_changes_what_it_says(self, tmp_path: Path) -> None:
        found = [draw(random.Random(number), "file", TEXT) for number in range(400)]
        assert {damage.how for damage in found} == set(WAYS)
        for damage in found:
            (tmp_path / "file").write_bytes(TEXT)
            damage.put(tmp_path)
            path = tmp_path / "file"
            if damage.how == "loop":
                assert path.is_symlink()
                assert not path.exists()
            elif damage.how == "deleted":
                assert not path.is_symlink()
                assert not path.exists()
            elif damage.how not in ("lines swapped", "line doubled", "bytes", "zeros"):
                assert path.read_bytes() != TEXT, damage
            restore(tmp_path, {"file": TEXT})
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": TEXT}

    def test_lines_stay_whole_lines(self) -> None:
        lines = TEXT.splitlines(keepends=True)
        for number in range(400):
            damage = draw(random.Random(number), "file", TEXT)
            if damage.how in ("lines swapped", "line doubled", "line lost"):
                assert damage.content is not None
                assert set(damage.content.splitlines(keepends=True)) <= set(lines)
                left = {"lines swapped": 3, "line doubled": 4, "line lost": 2}[damage.how]
                assert len(damage.content.splitlines()) == left

    def test_a_number_is_always_the_same_damage(self) -> None:
        assert [draw(random.Random(7), "a", TEXT) for _ in range(2)] == [draw(random.Random(7), "a", TEXT)] * 2

    def test_what_else_is_there_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / "made" / "inside").mkdir(parents=True)
        (tmp_path / "made" / "inside" / "file").write_text("x")
        restore(tmp_path, {"kept/file": b"y"})
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"kept", "kept/file"}


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (True, 1), (0.0, -0.0), ("1", 1), ([1], [1, 2]), ({"a": 1}, {"b": 1}), (float("nan"), 0.0), (None, 0)],
)
def test_values_are_equal_only_where_they_mean_the_same(one: object, other: object) -> None:
    assert seen(one) != seen(other)
    assert (seen(one), seen(other)) == (seen(one), seen(other))


def believing(folder: Path) -> object:
    return (folder / "file").read_bytes() if (folder / "file").exists() else b""


def after_damage(what: str) -> Kind:
    """A reader that, of a file that is not whole, does what the outcome of that name means."""

    def read(folder: Path) -> object:
        if believing(folder) == TEXT:
            return "whole"
        match what:
            case "refused":
                raise UserError("no")
            case "fell back":
                warnings.warn("an older one", stacklevel=1)
            case "traceback":
                raise KeyError("nobody catches this")
            case "hang":
                time.sleep(60)
            case "crash":
                os._exit(3)
        return "whole" if what == "no change" else "something else"

    return Kind(files=("file",), read=read, users=what == "taken", optional=what == "not made yet")


@pytest.mark.parametrize("what", harness.OUTCOMES)
def test_outcomes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(harness, "HANG_S", 1.0)
    (tmp_path / "material").mkdir()
    (tmp_path / "material" / "file").write_bytes(TEXT)
    cases = list(fuzz(tmp_path / "material", seed=0, numbers=range(5), workers=2, kinds={"it": after_damage(what)}))
    assert sorted(case.number for case in cases) == list(range(5))
    for case in cases:
        unchanged = case.how in ("lines swapped", "bytes", "zeros") and case.outcome == "no change"
        lost = what == "not made yet" and case.how != "deleted" and case.outcome == "silent"
        assert case.outcome == what or unchanged or lost, case
    assert believing(tmp_path / "material") == TEXT


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nothing_damaged_is_believed(tmp_path: Path) -> None:
    make(tmp_path)
    cases = list(fuzz(tmp_path, seed=1, numbers=range(5000)))
    assert [case for case in cases if case.outcome in FAULTS] == []
    assert Counter(case.kind for case in cases).keys() == KINDS.keys()
