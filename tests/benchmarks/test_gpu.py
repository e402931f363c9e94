"""The benchmark for GPUs runs to its end without one, in miniature, by the same functions."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes where there is a GPU")
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    import_module("gpu").main()
    said = capsys.readouterr().out
    assert "There is no CUDA device here, so nothing is measured" in said
    for part in ("rss: seconds", "spos: seconds", "eager again", "times as fast channels_last", "600 subnets"):
        assert part in said
    assert "nan" not in said
