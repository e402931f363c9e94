"""What twice the epochs give: the benchmark pairs trainings of one set, size and seed, and does what is missing."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from trainonce.records import read_lines

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def outlook(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("outlook")


def test_a_row_is_of_a_training_and_one_twice_as_long(outlook: Any) -> None:
    found = [
        outlook.Ended("a", 100, 4, 0, 60.0, 50.0),
        outlook.Ended("a", 100, 8, 0, 70.0, 53.5),
        outlook.Ended("a", 100, 32, 0, 90.0, 60.0),
        outlook.Ended("a", 200, 16, 0, 80.0, 70.0),
        outlook.Ended("a", 100, 16, 1, 80.0, 71.0),
        outlook.Ended("b", 100, 16, 0, 80.0, 72.0),
    ]
    _, _, *rows = outlook.table(found).splitlines()
    assert rows == ["| a | 4 | 60.0 | 50.0 | +3.5 | Still rising |"]


def test_it_trains_what_is_missing(outlook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "outlook.jsonl"

    def run(*epochs: float) -> list[float]:
        given = ["outlook.py", "digits", "--epochs", *map(str, epochs), "--train-images", "200", "--out", str(out)]
        monkeypatch.setattr("sys.argv", given)
        outlook.main()
        return [line["epochs"] for line in read_lines(out)]

    assert run(1) == [1]
    before = out.read_bytes()
    assert run(1, 2) == [1, 2]
    assert out.read_bytes().startswith(before)
