"""The benchmarks of a person's own network, in miniature."""

import json
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

OWN = ["--model", "tests.support.own_networks:Residual", "--image-size", "8"]


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.long
def test_three_devices_from_one_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.jsonl"
    asked = ["digits", *OWN, "--minutes", "0.05", "--seeds", "0", "--sides", "ours", "--out", str(out)]
    own_network = import_module("own_network")
    own_network.main(asked)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["device"] for line in lines] == [0.25, 0.5, 1.0]
    assert lines[0]["macs"] < lines[1]["macs"] <= 0.5 * lines[2]["macs"]
    assert all(line["side"] == "ours" and 0 <= line["test"] <= 100 for line in lines)
    assert "| digits | 8 pixels | 0.05 | ours |" in capsys.readouterr().out
    own_network.main(asked)
    assert len(out.read_text().splitlines()) == 3, "what is there is not done again"


def test_a_rival_on_smaller_images(tmp_path: Path) -> None:
    """Its MACs are a device's at most, the network's for the largest; its parameters stay."""
    out = tmp_path / "own.jsonl"
    asked = ["digits", "--model", OWN[1], "--image-size", "48", "--train-images", "200", "--minutes", "0.02"]
    import_module("own_network").main([*asked, "--seeds", "0", "--sides", "resized", "--out", str(out)])
    quarter, half, whole = (json.loads(line) for line in out.read_text().splitlines())
    assert [line["macs"] / whole["macs"] for line in (quarter, half)] == pytest.approx([1 / 9, 4 / 9], rel=0.01)
    assert quarter["params"] == half["params"] == whole["params"]


def test_orders_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    import_module("channel_order").main(["digits", *OWN, "--epochs", "1", "--subnets", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["none", "l1", "l2", "taylor"]
    assert all(row.count("|") == 5 for row in rows)
