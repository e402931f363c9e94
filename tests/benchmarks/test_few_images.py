"""Recipes on few images: a run of seconds, and the table of its lines."""

import statistics
from importlib import import_module
from pathlib import Path

import pytest
import torch

from trainonce.records import read_lines


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
