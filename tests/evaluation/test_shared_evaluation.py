"""Evaluating by several processes: the scores of one, each recorded once, whoever is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainonce.data import load_dataset
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import SubnetScore
from trainonce.training.loop import train_supernet

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
WORKERS = ("--workers", "2", "--threads", "2")
PER_BUCKET = 4
TOTAL = 6 * PER_BUCKET
SOON_S = 20.0

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing was evaluated of."""
    run = RunDirectory(tmp_path_factory.mktemp("trained") / "run")
    settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10, width_mult=0.25)
    recipe = RECIPES["spos"].with_batch_size(256).scaled(1 / RECIPES["spos"].epochs)
    train_supernet(MobileNetV3(settings), recipe, load_dataset("digits"), run)
    return run.path


@pytest.fixture(scope="module")
def expected(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SubnetScore]:
    """What one process with one thread records."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("alone") / "run"))
    finish(evaluate(run, "--workers", "1", "--threads", "1"))
    return lines(run)


def evaluate(run: Path, *options: str, by: tuple[str, ...] = ()) -> list[str]:
    what = ("-m", "trainonce", "evaluate", str(run), "--per-bucket", str(PER_BUCKET), "--calibration-images", "100")
    return [sys.executable, *by, *what, "--device", "cpu", *options]


def finish(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def lines(run: Path) -> list[SubnetScore]:
    return sorted(RunDirectory(run).population(), key=lambda line: line.arch)


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found += [int(entry.name), *children(int(entry.name))]
    return found


def environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return []


@contextmanager
def under_way(command: list[str], run: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program that has recorded something but not all, and the processes it started; after it, all have ended."""
    before = len(lines(run))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        end = time.monotonic() + 60
        while len(lines(run)) == before:
            assert program.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        started = children(program.pid)
        yield program, started
        program.communicate(timeout=SOON_S)
    end = time.monotonic() + SOON_S
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []
    assert before < len(lines(run)) < TOTAL


@pytest.mark.long
def test_stopped_killed_and_run_again(trained: Path, expected: list[SubnetScore], tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with under_way(evaluate(run, *WORKERS), run) as (program, _):
        program.terminate()
    assert program.returncode == 128 + signal.SIGTERM
    with under_way(evaluate(run, *WORKERS), run) as (program, started):
        assert len(started) >= 2
        program.kill()
    finish(evaluate(run, *WORKERS))
    assert len(expected) == TOTAL
    assert lines(run) == expected


@pytest.mark.ray
def test_on_ray(trained: Path, expected: list[SubnetScore], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    done = finish(evaluate(run, "--cluster", "ray", "--workers", "2", "--json"))
    assert json.loads(done.stdout)["run"] == str(run)
    assert lines(run) == expected


@pytest.mark.long
def test_torchrun_with_a_rank_killed(trained: Path, expected: list[SubnetScore], tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with under_way(evaluate(run, by=TORCHRUN), run) as (program, started):
        (second,) = (pid for pid in started if "RANK=1" in environment(pid))
        os.kill(second, signal.SIGKILL)
    assert program.returncode == 1
    done = finish(evaluate(run, by=TORCHRUN))
    assert done.stdout.count("Top-1 in percent on") == 1
    assert lines(run) == expected
