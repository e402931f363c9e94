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
from trainonce.errors import UserError
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.records import read_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def paper_gpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("paper_gpu")


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "paper_gpu.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the miniature is the CPU's")
def test_in_miniature(tmp_path: Path) -> None:
    """Stopped and gone on with, one arm of two studies in one queue."""
    words = ("images-500:rss", "length-0.1:rss", "--out", tmp_path, "--miniature", "--workers", "2")
    begun = call(*words, "--minutes", "0")
    assert begun.returncode == 3, begun.stderr
    assert "differ by at most 0.0e+00, their gradients by 0.0e+00 (median) to 0.0e+00" in begun.stdout
    assert "images-500: 0 of 6 runs are done" in begun.stdout
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "CPU and" not in done.stdout, "agreement is checked once"
    for name in ("images-500", "length-0.1"):
        directory = StudyDirectory(tmp_path / name)
        assert {line.run for line in directory.finished()} == {f"rss-seed{seed}" for seed in range(3)}
        assert "no seed has results of both" in read_json(directory.conclusion_file)["sentence"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would run")
def test_without_a_gpu_nothing_is_run(paper_gpu: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no CUDA device here: --miniature shows that it works$"):
        paper_gpu.main(["mnist", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"^name one or more of mnist, cifar10, "):
        paper_gpu.main(["mnits", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_queue_is_in_the_order_of_the_names(paper_gpu: ModuleType, tmp_path: Path) -> None:
    """Some arms of a study first, the rest of it last; of each the arms of the main comparison lead."""
    data = load_dataset("digits", train_images=256)
    queue = paper_gpu.Queue(tmp_path, "cpu", 1, None)
    for name, arms in (("mnist", ("rss", "ps")), ("solo", ("supernet-rss",)), ("mnist", ())):
        queue.add(name, paper_gpu.PLANNED[name].study(data), data, arms)
    later = ["rss-short", "stratified", "ps@rss-passes", "ps-ofa", "ps-released", "rss-published", "ps-published"]
    order = [arm for arm in ["ps", "rss", "supernet-rss", *later] for _ in range(3)]
    found = [task.run.arm for task in queue.tasks]
    assert found[:15] == order[:15]
    assert sorted(found[15:]) == sorted(order[15:])
    assert len({str(task) for task in queue.tasks}) == len(queue.tasks) == 27 + 3
    with pytest.raises(UserError, match=r"^solo has no arm rss; it has supernet-rss, "):
        paper_gpu.refuse_strange_arms("solo", paper_gpu.PLANNED["solo"].study(data), ("rss", "supernet-rss"))


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        (
            "mnist",
            {
                "rss": (590, 590),
                "rss-short": (180, 180),
                "stratified": (590, 590),
                "ps": (590, 1170),
                "ps@rss-passes": (298, 590),
                "ps-ofa": (590, 1170),
                "ps-released": (590, 1170),
                "rss-published": (590, 590),
                "ps-published": (590, 1170),
            },
        ),
        ("full", {"rss-short": (180, 180), "rss": (590, 590), "ps": (590, 1170), "ps-released": (590, 1170)}),
        ("cifar100", {"rss": (590, 590), "rss-short": (180, 180), "ps": (590, 1170)}),
        ("mnist-again", {"rss": (590, 590), "stratified": (590, 590), "ps": (590, 1170)}),
    ],
)
def test_the_arms_are_those_registered_at_full_length(
    paper_gpu: ModuleType, name: str, lengths: dict[str, tuple[int, int]]
) -> None:
    planned = paper_gpu.PLANNED[name]
    study = planned.study(load_dataset("digits"))
    assert {run.arm: (round(run.recipe.epochs), round(run.recipe.passes)) for run in study.runs} == lengths
    assert {run.seed for run in study.runs} == set(planned.seeds)
    top = {run.arm: max(phase.lr for phase in run.recipe.phases) for run in study.runs}
    rates = {"rss": 0.03, "rss-short": 0.03, "ps": 0.08} if name != "full" else dict.fromkeys(lengths, 0.01)
    assert {arm: top[arm] for arm in rates if arm in top} == pytest.approx({a: r for a, r in rates.items() if a in top})


def test_another_network_does_not_agree(paper_gpu: ModuleType) -> None:
    """The check can fail: the same subnets at other weights."""
    data = load_dataset("digits", train_images=256)
    assert paper_gpu.agreement(data, "cpu", steps=2).holds
    other = paper_gpu.agreement(data, "cpu", seed=1, steps=2)
    assert other.worst_gradient > other.gradient > 0.5
    assert not other.holds
