"""What is kept of fine-tuning: the rules on made-up scores."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from trainonce.records import read_lines


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


@pytest.mark.long
def test_a_run_of_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads = tmp_path / "out.jsonl", torch.get_num_threads()
    try:
        import_module("worth_finetune").main(["digits", "--images", "1000", "--seconds", "0.5", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    lines = list(read_lines(out))
    assert [(line["device"], line["seed"]) for line in lines] == [
        (d, seed) for d in (0.25, 0.5, 1.0) for seed in (0, 1)
    ]
    assert all(line["epochs"] for line in lines)
    assert "| the last epoch |" in capsys.readouterr().out
