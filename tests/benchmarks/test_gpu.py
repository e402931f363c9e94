"""The benchmark for GPUs runs to its end without one, in miniature, by the same functions."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes where there is a GPU")
def test_without_a_gpu() -> None:
    found = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    assert "There is no CUDA device here, so nothing is measured" in found.stdout
    for part in ("rss: seconds", "spos: seconds", "eager again", "times as fast channels_last", "600 subnets"):
        assert part in found.stdout
    assert "nan" not in found.stdout
