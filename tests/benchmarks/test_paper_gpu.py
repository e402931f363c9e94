"""The GPU call of the paper's comparison, in miniature on the CPU: it agrees, stops, goes on, and refuses."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from trainonce.data import load_dataset
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.records import read_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def paper_gpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("paper_gpu")


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "paper_gpu.py"), "digits", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the miniature is the CPU's")
def test_in_miniature(tmp_path: Path) -> None:
    words = ("--out", tmp_path, "--seeds", "1", "--miniature")
    begun = call(*words, "--minutes", "0")
    assert begun.returncode == 3, begun.stderr
    assert "losses differ by at most 0.0e+00 in the first 10, their means by 0.0e+00" in begun.stdout
    assert "0 of 4 runs are done; the same call goes on" in begun.stdout
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "steps on the CPU" not in done.stdout, "agreement is checked once"
    assert "4 of 4 runs are done" in done.stdout
    directory = StudyDirectory(tmp_path)
    assert [line.run for line in directory.finished()] == [
        f"{arm}-seed0" for arm in ("rss-short", "rss", "ps", "ps-released")
    ]
    assert read_json(directory.conclusion_file)["verdict"] == "cannot tell", "one seed tells nothing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would run")
def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    found = call("--out", tmp_path / "out")
    assert found.returncode == 1
    assert found.stderr.strip() == "paper_gpu: there is no CUDA device here: --miniature shows that it works"
    assert not (tmp_path / "out").exists()


def test_the_arms_are_the_papers_at_full_length(paper_gpu: ModuleType) -> None:
    study = paper_gpu.planned(load_dataset("digits"), seeds=2, scale=1.0)
    lengths = {run.arm: (round(run.recipe.epochs), round(run.recipe.passes)) for run in study.runs}
    assert lengths == {"rss-short": (180, 180), "rss": (590, 590), "ps": (590, 1170), "ps-released": (590, 1170)}
    assert [run.seed for run in study.runs] == [0] * 4 + [1] * 4
    assert {run.recipe.phases[0].lr for run in study.runs} == {0.01}


def test_another_training_does_not_agree(paper_gpu: ModuleType) -> None:
    """The check can fail: the same steps from other weights."""
    data = load_dataset("digits", train_images=256)
    one, again = (paper_gpu.losses_on("cpu", data, 12) for _ in range(2))
    other = paper_gpu.losses_on("cpu", data, 12, seed=1)
    assert len(one) == 12
    assert paper_gpu.agreement(one, again).holds
    assert not paper_gpu.agreement(one, other).holds
