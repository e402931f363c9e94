"""Recipes on few images: a run of seconds, and the table of its lines."""

import statistics
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from trainonce.errors import UserError
from trainonce.records import append_line, read_lines


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_a_run_of_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two recipes on the demo's digits; what is there already is not measured again."""
    out, threads = tmp_path / "out.jsonl", torch.get_num_threads()
    unmixed = Path(__file__).parents[2] / "benchmarks" / "levers" / "unmixed.toml"
    asked = ["digits", "--train-images", "100", "--passes", "8", "--recipe", "quick", str(unmixed), "--out", str(out)]
    try:
        for _ in range(2):
            import_module("few_images").main(asked)
    finally:
        torch.set_num_threads(threads)
    lines = list(read_lines(out))
    assert [(line["recipe"], line["device"]) for line in lines] == [
        (recipe, device) for recipe in ("quick", "unmixed") for device in (0.25, 0.5, 1.0)
    ]
    assert all(line["images"] == 100 and line["passes"] == 8 for line in lines)
    heads, _, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert heads.startswith("| set | images | passes | recipe |")
    for row, of in zip(rows, (lines[:3], lines[3:]), strict=True):
        assert row.split(" | ")[3:6] == [
            str(of[0]["recipe"]),
            "1",
            f"{statistics.fmean(float(line['validate']) for line in of):.1f}",
        ]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The recipes and seeds that are measured, without a training: 90, 80 and 70% on the three devices."""
    found: list[tuple[str, int]] = []

    def measure(_data: Any, _passes: float, recipe: Any, seed: int) -> list[dict[str, Any]]:
        found.append((recipe.name, seed))
        figures = {"macs": 1, "loss": 0.5, "seconds": 1.0}
        devices = ((0.25, 90.0), (0.5, 80.0), (1.0, 70.0))
        return [figures | {"device": device, "validate": top1, "test": top1} for device, top1 in devices]

    monkeypatch.setattr(import_module("few_images"), "measure", measure)
    return found


def test_what_was_interrupted_is_measured_again(
    tmp_path: Path, measured: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A device's line alone is no training: neither done, nor in the mean of the table."""
    out, threads = tmp_path / "out.jsonl", torch.get_num_threads()
    line = {"data": "digits", "images": 100, "passes": 8.0, "recipe": "quick", "device": 0.25, "macs": 1, "loss": 0.9}
    for seed in (0, 1):
        append_line(out, line | {"seed": seed, "validate": 10.0, "test": 10.0, "seconds": 9.0})
    asked = ["digits", "--train-images", "100", "--passes", "8", "--seeds", "0", "--out", str(out)]
    try:
        for _ in range(2):
            import_module("few_images").main(asked)
            assert capsys.readouterr().out.endswith("| digits | 100 | 8 | quick | 1 | 80.0 | 0.500 | 80.0 | 1 |\n")
    finally:
        torch.set_num_threads(threads)
    assert measured == [("quick", 0)]


@pytest.mark.parametrize("benchmark", ["few_images", "worth"])
def test_two_recipes_of_one_name_are_refused(tmp_path: Path, measured: list[tuple[str, int]], benchmark: str) -> None:
    """In the file they would be one, and the second never be measured."""
    other = str(tmp_path / "quick.toml")
    with pytest.raises(UserError, match="two recipes are called quick"):
        import_module(benchmark).main(["digits", "--recipe", "quick", other, "--out", str(tmp_path / "out.jsonl")])
    assert not measured
