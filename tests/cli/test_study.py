"""`trainonce study` as a person uses it: a mini-study end to end, its plan beforehand, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trainonce.cli.app import app
from trainonce.errors import UserError
from trainonce.lab.studies.run_study import StudyDirectory

MINI = """
about = "Uniform against stratified draws."
question = "Which is better?"
data = "digits"
seeds = [0, 1]

[[arms]]
name = "uniform"
recipe = "spos"
epochs = 0.5
model = { width_mult = 0.25, depths = [1, 2] }

[[arms]]
name = "stratified"
recipe = "stratified"
epochs = 0.5
model = { width_mult = 0.25, depths = [1, 2] }

[evaluate]
per_bucket = 0
probes = ["smallest", "largest"]
calibration_images = 50
"""


def study(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainonce", "study", *map(str, words), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*words: str | Path) -> Any:
    """The same in this process, as far as a plan goes."""
    return CliRunner().invoke(app, ["study", *map(str, words), "--device", "cpu"])


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    path = tmp_path / "mini.toml"
    path.write_text(MINI)
    return path


@pytest.mark.long
def test_the_whole_story(mini: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (mini, "--out", out, "--threads", "2", "--workers", "2")
    done = study(*words)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs to do, 2 at a time: about" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["Top-1", "arm", "uniform", "stratified"]
    directory = StudyDirectory(out)
    assert len(directory.results()) == 8
    assert {line.split for line in directory.results()} == {"test"}
    assert {(line.beside, line.threads) for line in directory.finished()} == {(2, 1)}
    assert json.loads((out / "runs" / "uniform-seed1" / "run.json").read_text())["seed"] == 1

    before = {p: p.read_bytes() for p in out.glob("*.json*")}
    again = study(*words, "--json")
    assert again.returncode == 0, again.stderr
    assert "0 of 4 runs to do" in again.stderr
    arms: list[dict[str, Any]] = json.loads(again.stdout)["arms"]
    assert [(arm["arm"], arm["seeds"], arm["subnets"]) for arm in arms] == [("uniform", 2, 2), ("stratified", 2, 2)]
    assert {p: p.read_bytes() for p in out.glob("*.json*")} == before, "nothing is done twice"

    changed = study(*words, "--scale", "2")
    assert changed.returncode == 2
    assert "is of another study: its scale was 1.0 and is 2.0" in changed.stderr


@pytest.mark.ray
def test_on_ray(mini: Path, tmp_path: Path) -> None:
    """The same results by workers of a Ray on this machine as by processes."""
    pytest.importorskip("ray")
    found = []
    for cluster in ("local", "ray"):
        out = tmp_path / cluster
        done = study(mini, "--out", out, "--threads", "2", "--workers", "2", "--cluster", cluster)
        assert done.returncode == 0, done.stderr
        lines = StudyDirectory(out).results()
        found.append(sorted((line.run, line.arch, line.top1) for line in lines))
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_a_dry_run_writes_nothing(mini: Path, tmp_path: Path) -> None:
    done = here(mini, "--out", tmp_path / "out", "--dry-run", "--json", "--workers", "2")
    assert done.exit_code == 0, done.exception
    plan = json.loads(done.stdout)
    assert (plan["runs"], plan["missing"], plan["workers"]) == (4, 4, 2)
    assert plan["seconds"] > 0
    assert list(tmp_path.iterdir()) == [mini]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("dosis", "digits"),
            "unknown study 'dosis'; the studies are tuning, baseline, dose, solo, factorial, geometry",
        ),
        (("dose",), "name a data set"),
        (("solo", "digits", "--buckets", "1,2"), "solo draws its probes from buckets of its own"),
        (("dose", "digits", "--buckets", "paper"), "leave out --buckets"),
        (("tuning", "digits", "--split", "test"), "nothing is chosen on the test split"),
        (("dose", "digits", "--scale", "0"), "--scale must be over 0"),
        (("baseline", "digits", "--rate", "rss"), "--rate takes RECIPE=FACTOR, such as rss=3, not 'rss'"),
        (("baseline", "digits", "--rate", "rss=-1"), "not 'rss=-1'"),
        (("baseline", "digits", "--rate", "spos=2"), "baseline takes no learning rate of spos: it takes those of rss"),
        (("dose", "digits", "--rate", "rss=2"), "dose takes no learning rate of rss: it takes none"),
        (("baseline", "digits", "--train-images", "5"), "must lie between 10 and"),
        (("baseline", "digits", "--scale", "0.001"), "fewer than 50 are not rss: take a larger --scale"),
        (("none.toml", "digits"), "cannot read the study none.toml"),
        (("factorial", "digits", "--scale", "0.0001"), "take a larger --scale"),
    ],
)
def test_refusals(words: tuple[str, ...], sentence: str) -> None:
    done = here(*words, "--dry-run")
    assert isinstance(done.exception, UserError)
    assert sentence in str(done.exception)
