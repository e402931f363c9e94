"""Which size of images a device should have: the rules on made-up scores."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from trainonce.records import read_lines


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def lines(device: float, size: int, before: list[float], half: list[float], whole: list[float]) -> list[dict[str, Any]]:
    """Of one seed: loss and top-1 on validate, top-1 on test."""
    shared = {"data": "one", "images": 1000, "device": device, "size": size, "before": before}
    return [shared | {"seconds": 4.0, "tuned": [half]}, shared | {"seconds": 8.0, "tuned": [whole]}]


def test_each_rule_hands_over_what_it_says() -> None:
    found = [
        *lines(0.5, 48, [0.5, 0, 60.0], [0.49, 0, 61.0], [0.45, 0, 62.0]),
        *lines(0.5, 64, [0.6, 0, 70.0], [0.48, 0, 71.0], [0.4, 0, 72.0]),
        *lines(1.0, 48, [0.5, 0, 80.0], [0.55, 0, 81.0], [0.6, 0, 82.0]),  # fine-tuning it does harm
        *lines(1.0, 64, [0.7, 0, 90.0], [0.8, 0, 91.0], [0.65, 0, 92.0]),
    ]
    heads, _, *rows = import_module("worth_sizes").table(found).splitlines()
    assert heads == "| rule | one, 1,000, 8 s | mean |"
    by_loss_before, whole_images, each_in_half = (float(row.split(" | ")[1]) for row in rows)
    assert by_loss_before == (62 + 80) / 2
    assert whole_images == (72 + 92) / 2
    assert each_in_half == (71 + 80) / 2


@pytest.mark.long
def test_a_run_of_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's digits have one size of images: nothing is to be chosen."""
    out, threads = tmp_path / "out.jsonl", torch.get_num_threads()
    try:
        import_module("worth_sizes").main(["digits", "--images", "1000", "--seconds", "0.5", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    assert list(read_lines(out)) == []
    assert "there are no smaller images to choose from" in capsys.readouterr().out
