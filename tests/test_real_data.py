"""The main job on the published images, at a length that proves only that it works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainonce.run.directory import RunDirectory

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not os.environ.get("TRAINONCE_DATA"), reason="TRAINONCE_DATA names no data"),
]


def run(*arguments: str | Path, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainonce", *map(str, arguments), "--json"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.long
@pytest.mark.parametrize(
    ("data", "epochs", "least_top1"),
    [("mnist", "0.5", 25.0), ("cifar10", "0.5", 15.0)],
)
def test_training_and_evaluating_beats_chance_clearly(
    data: str, epochs: str, least_top1: float, tmp_path: Path
) -> None:
    """Chance is 10%. Calibrated subnets of common sizes must be well above it."""
    trained = run("train", data, "--recipe", "spos", "--epochs", epochs, "--out", tmp_path / "run")
    assert trained["passes"] == pytest.approx(float(epochs), abs=0.01)
    scored = run("evaluate", tmp_path / "run", "--buckets", "7,9", "--per-bucket", "2")
    assert [bucket["count"] for bucket in scored["buckets"]] == [2, 2]
    for bucket in scored["buckets"]:
        assert bucket["median"] > least_top1, scored


@pytest.mark.long
def test_the_fast_way_scores_as_the_plain_way(tmp_path: Path) -> None:
    """Within two of 10,000 images: fused kernels and shared segments against torch's operators, when trained."""
    run("train", "cifar10", "--recipe", "spos", "--epochs", "0.25", "--out", tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    asked = ("--split", "test", "--buckets", "6,9", "--per-bucket", "1")
    run("evaluate", tmp_path / "run", *asked)
    run("evaluate", tmp_path / "same", *asked, TRAINONCE_NATIVE="0")
    fast, plain = (
        {line.arch: line.top1 for line in RunDirectory(tmp_path / name).population()} for name in ("run", "same")
    )
    assert len(fast) == 2
    assert fast == pytest.approx(plain, abs=0.021)
