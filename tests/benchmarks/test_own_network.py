"""The benchmarks of a person's own network, in miniature."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from trainonce.records import append_line

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


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The seconds and rates of the networks that a test trains alone, none of which is trained."""
    found: list[tuple[float, float]] = []

    def train_alone(_network: nn.Module, _data: Any, *, seconds: float, steps: Any, seed: int) -> Any:
        found.append((seconds, steps.rate))
        return import_module("worth_rivals").Trained(validate=50.0, test=50.0, seconds=seconds, steps=seed)

    monkeypatch.setattr(import_module("own_network"), "train_alone", train_alone)
    return found


def test_a_side_that_was_interrupted_does_what_is_missing(tmp_path: Path, trained: list[tuple[float, float]]) -> None:
    asked = ["digits", *OWN[:2], "--image-size", "48", "--minutes", "1", "--seeds", "0", "--sides", "resized", "--out"]
    whole, interrupted = tmp_path / "whole.jsonl", tmp_path / "interrupted.jsonl"
    import_module("own_network").main([*asked, str(whole)])
    interrupted.write_text("".join(whole.read_text().splitlines(keepends=True)[:2]))
    import_module("own_network").main([*asked, str(interrupted)])
    assert interrupted.read_text() == whole.read_text()
    assert len(trained) == 3 + 1


def test_of_a_repeated_network_the_last_line_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that was interrupted after two devices and made anew is one seed, without an interval."""
    out = tmp_path / "own.jsonl"
    line = {"data": "d", "geometry": "8 pixels", "minutes": 1, "side": "ours", "settings": "", "sharing": 3}
    line |= {"macs": 1, "params": 1, "validate": 0.0}
    for seconds, top1, devices in ((9.0, 10.0, (0.25, 0.5)), (20.0, 60.0, (0.25, 0.5, 1.0))):
        for device in devices:
            append_line(out, line | {"seed": 0, "device": device, "test": top1, "seconds": seconds})
    import_module("own_network").main([*OWN, "--out", str(out)])
    assert "| d | 8 pixels | 1 | ours |  | 60.0 | 60.0 | 60.0 | 60.0 | 0.0 | – | 60 | 1 |" in capsys.readouterr().out


def test_a_network_from_nothing_is_for_the_devices_that_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[tuple[float, float]]
) -> None:
    """It has 0.3 of the MACs: its one training is not for a quarter, and its time is once in what both have."""
    whole = 0

    def create_model(_name: str, *, in_chans: int, num_classes: int) -> nn.Module:
        plain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, round(0.3 * whole)))
        return nn.Sequential(plain, nn.AdaptiveAvgPool1d(num_classes))

    own_network, out = import_module("own_network"), tmp_path / "own.jsonl"
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    asked = ["digits", *OWN[:2], "--image-size", "48", "--minutes", "1", "--seeds", "0", "--rates", "1e-3"]
    asked += ["--out", str(out), "--sides"]
    own_network.main([*asked, "resized"])
    [whole] = [line["macs"] for line in map(json.loads, out.read_text().splitlines()) if line["device"] == 1]
    trained.clear()
    for _ in range(2):
        own_network.main([*asked, "scratch"])
        lines = [line for line in map(json.loads, out.read_text().splitlines()) if line["side"] == "scratch"]
        assert [line["device"] for line in lines] == [0.5, 1.0]
        assert all(line["macs"] == round(0.3 * whole) for line in lines)
        assert trained == [(20.0, 0.01)]
        assert sum(line["seconds"] for line in lines) == 20
        assert {line["settings"] for line in lines} == {"rate 0.01"}


def test_orders_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    import_module("channel_order").main(["digits", *OWN, "--epochs", "1", "--subnets", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["none", "l1", "l2", "taylor"]
    assert all(row.count("|") == 5 for row in rows)
