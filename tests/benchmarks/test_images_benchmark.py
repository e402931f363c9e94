"""The benchmark of varied images, in seconds."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from tests.support.native import needs_native


@needs_native
def test_every_row_has_what_both_take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark, threads = import_module("images"), torch.get_num_threads()
    monkeypatch.setattr(benchmark, "LEAST_STEPS", 2)
    monkeypatch.setattr(benchmark, "REPEATED", 1)
    try:
        benchmark.main(["digits", "--rounds", "1", "--steps", "4"])
    finally:
        torch.set_num_threads(threads)
    _, *rows = capsys.readouterr().out.strip().splitlines()
    names = [row.split("|")[1].strip() for row in rows[2:]]
    assert names == ["digits, varied", "digits, at 4 pixels", "digits, at 6 pixels", "digits, a step"]
    assert all(float(cell) > 0 for row in rows[2:5] for cell in row.split("|")[2:4])
