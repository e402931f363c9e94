"""What is kept of fine-tuning: the rules on made-up scores."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_each_rule_hands_over_what_it_says() -> None:
    benchmark = import_module("worth_finetune")
    before = (70.0, 1.0, 60.0, 1.1)
    epochs = [(70.0, 0.8, 61.0, 0.9), (69.0, 0.7, 62.0, 0.8), (68.0, 0.9, 63.0, 1.0)]
    lines = [{"data": "one", "before": before, "epochs": epochs}, {"data": "one", "before": before, "epochs": epochs}]
    lines.append({"data": "other", "before": (60.0, 0.5, 50.0, 0.5), "epochs": epochs})
    heads, _, *rows = benchmark.table(lines).splitlines()
    assert heads == "| kept | one | other | mean |"
    assert [row.split(" | ", 1)[1] for row in rows] == [
        "60.00 | 50.00 | 55.00 |",
        "60.00 | 61.00 | 60.50 |",
        "61.00 | 61.00 | 61.00 |",
        "63.00 | 63.00 | 63.00 |",
        "62.00 | 50.00 | 56.00 |",
    ]
