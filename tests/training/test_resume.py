"""A run that stops, or is killed, goes on bit for bit; what cannot go on says why."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.support import command_line
from tests.support.lines import a_stretch, timeless
from torch import Tensor

import trainonce
from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES, AugmentationChange, Crop, CutMix, Flip, Recipe, timetable
from trainonce.records import to_json
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings
from trainonce.training.step_sums import Known

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
STEPS = 20
Lines = list[dict[str, object]]


NAMES = ("ps", "rss", "attentive", "deps", "ps-adamw", "ps-muon", "transfer-muon", "rss-mixed")
EVERY_STEP = TrainSettings(checkpoint_every_s=0, log_every=3)


def short(name: str) -> Recipe:
    """The recipe in 20 steps of 8 images, 4 an epoch; `ps` has phases of 6, 4, 1, 4, 1 and 4.

    `ps-adamw` is `ps` with another optimizer, an average of the weights, and images varied otherwise; `ps-muon` and
    `transfer-muon`, which begins with the head alone, have another optimizer. `rss-mixed` mixes images by what is
    known.
    """
    name, _, optimizer = name.partition("-")
    recipe = RECIPES[name].with_batch_size(8)
    if optimizer == "mixed":
        change = AugmentationChange(also=(CutMix(once_known=0.0),))
        recipe = recipe.model_copy(update={"augmentation": change})
    elif optimizer:
        recipe = recipe.model_copy(update={"optimizer": optimizer})
    if optimizer == "adamw":
        change = AugmentationChange(crop_from=0.3, flip=False, erase=0.5)
        recipe = recipe.model_copy(update={"ema": 0.9, "idle_weights": "rest", "augmentation": change})
    return recipe.scaled(5 / recipe.epochs)


def after(count: int) -> Callable[[], bool]:
    """Stop after so many steps."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == count

    return stop


@dataclass(frozen=True)
class Runs:
    """Runs of the tiny network, and what uninterrupted ones come to."""

    make_net: MakeNet
    data: DataSet
    folder: Path

    def go(self, name: str, run: RunDirectory, *, resume: bool = True, stop: int | None = None) -> dict[str, Tensor]:
        """Train on, from a network of other weights where resumed; gives the final state."""
        net = self.make_net(seed=77 if run.checkpoints.exists() else 0)
        should_stop = None if stop is None else after(stop)
        finished = train_supernet(
            net, short(name), self.data, run, resume=resume, settings=EVERY_STEP, should_stop=should_stop
        )
        assert finished == (stop is None)
        return net.state_dict()

    def straight(self, name: str) -> tuple[dict[str, Tensor], Lines]:
        run = RunDirectory(self.folder / f"straight-{name}")
        if not run.path.exists():
            self.go(name, run, resume=False)
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.step == STEPS
        return found.tensors["weights"], timeless(run.metrics())

    def check(self, name: str, weights: dict[str, Tensor], run: RunDirectory) -> None:
        expected, metrics = self.straight(name)
        assert weights.keys() == expected.keys()
        assert [k for k, v in weights.items() if not torch.equal(v, expected[k])] == []
        assert timeless(run.metrics()) == metrics
        assert run.exposure_file.read_bytes() == (self.folder / f"straight-{name}" / "exposure.npz").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def looks() -> Iterator[None]:
    """What is known is looked at after every other batch, and its mean soon forgets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Known, "PER_LOOK", 2)
        patch.setattr(Known, "KEPT", 0.1)
        yield


@pytest.fixture(scope="module")
def runs(make_net: MakeNet, make_data: MakeData, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    data = make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip()))
    return Runs(make_net, data, tmp_path_factory.mktemp("resume"))


class TestStopped:
    def test_the_runs_have_what_could_go_wrong(self, runs: Runs) -> None:
        table = timetable(short("ps"), steps_per_epoch=4)
        assert [entry.steps for entry in table] == [6, 4, 1, 4, 1, 4]
        for name in NAMES:
            weights, metrics = runs.straight(name)
            assert metrics[-1]["step"] == timetable(short(name), steps_per_epoch=4)[-1].end == STEPS
            fresh = runs.make_net().state_dict()
            assert not any(torch.equal(weights[k], v) for k, v in fresh.items() if v.ndim == 4)
        plain, mixed = ([line["loss"] for line in runs.straight(name)[1]] for name in ("rss", "rss-mixed"))
        assert mixed[0] == pytest.approx(plain[0]), "nothing is known of the first two batches"
        assert mixed[-1] != pytest.approx(plain[-1], rel=1e-2)

    @pytest.mark.parametrize("name", NAMES)
    def test_after_every_single_step(self, runs: Runs, tmp_path: Path, name: str) -> None:
        run = RunDirectory(tmp_path)
        for step in range(1, STEPS):
            runs.go(name, run, stop=1)
            latest = checkpoint.load_latest(run.checkpoints)
            assert latest is not None
            assert latest.step == step
        runs.check(name, runs.go(name, run), run)

    @pytest.mark.parametrize("step", [1, 5, 6, 8, 11, 15, 19])
    def test_once_anywhere(self, runs: Runs, tmp_path: Path, step: int) -> None:
        """Mid-epoch, at an epoch's end, mid-phase, at a phase's end, before and after sorting channels."""
        run = RunDirectory(tmp_path)
        runs.go("ps", run, resume=False, stop=step)
        assert max((line.step for line in run.metrics()), default=0) <= step
        runs.check("ps", runs.go("ps", run), run)

    def test_a_finished_run_stays_as_it_is(self, runs: Runs, tmp_path: Path) -> None:
        runs.straight("rss")
        run = RunDirectory(shutil.copytree(runs.folder / "straight-rss", tmp_path / "run"))
        runs.check("rss", runs.go("rss", run), run)

    def test_a_run_of_before_optimizers_could_be_chosen_goes_on(self, runs: Runs, tmp_path: Path) -> None:
        """What today's recipes have more stands in neither its run.json nor its checkpoints."""
        newer = ("optimizer", "betas", "ema", "augmentation")
        run = RunDirectory(tmp_path)
        runs.go("rss", run, resume=False, stop=7)
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        written = run.config().model_dump(mode="json")
        for recipe in (written["recipe"], found.state["identity"]["recipe"]):
            for key in newer:
                del recipe[key]
        run.config_file.write_bytes(to_json(written))
        checkpoint.save(run.checkpoints, found.step, found.tensors, found.state)
        assert run.load_supernet()[1] == 7
        runs.check("rss", runs.go("rss", run), run)

    def test_resuming_nothing_begins(self, runs: Runs, tmp_path: Path) -> None:
        net = runs.make_net()
        run = RunDirectory(tmp_path / "new")
        assert train_supernet(net, short("rss"), runs.data, run, resume=True, settings=EVERY_STEP)
        runs.check("rss", net.state_dict(), run)

    def test_a_run_is_not_begun_again(self, runs: Runs, tmp_path: Path) -> None:
        runs.go("rss", RunDirectory(tmp_path), stop=3)
        with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
            runs.go("rss", RunDirectory(tmp_path), resume=False)

    def test_metrics_beyond_the_checkpoint_are_made_again(self, runs: Runs, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        runs.go("ps", run, stop=8)
        run.append_metrics(a_stretch(9, loss=-1.0))
        with run.metrics_file.open("ab") as file:
            file.write(b'{"step": 10, "los')
        runs.check("ps", runs.go("ps", run), run)


@pytest.fixture(scope="module")
def begun(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("begun"))
    runs.go("rss", run, stop=2)
    return run


class TestAnotherRun:
    @pytest.mark.parametrize(
        ("other", "says"),
        [
            ("recipe", "recipe"),
            ("length", "recipe"),
            ("seed", "seed"),
            ("images", "data fingerprint"),
            ("net", "model"),
        ],
    )
    def test_it_says_what_differs(
        self, runs: Runs, begun: RunDirectory, make_data: MakeData, other: str, says: str
    ) -> None:
        recipe = {"recipe": short("spos"), "length": short("rss").scaled(2)}.get(other, short("rss"))
        net = runs.make_net(dropout=0.2) if other == "net" else runs.make_net()
        data = make_data(seed=1) if other == "images" else runs.data
        before = {p: p.read_bytes() for p in sorted(begun.path.rglob("*")) if p.is_file()}
        with pytest.raises(UserError, match=rf"run.json is of another run: its {says} differs from the one given"):
            train_supernet(net, recipe, data, begun, seed=1 if other == "seed" else 0, resume=True)
        assert {p: p.read_bytes() for p in sorted(begun.path.rglob("*")) if p.is_file()} == before

    def test_checkpoints_of_another_run(self, runs: Runs, begun: RunDirectory, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        runs.go("spos", run, stop=1)
        shutil.rmtree(run.checkpoints)
        shutil.copytree(begun.checkpoints, run.checkpoints)
        with pytest.raises(UserError, match=r"step-000002 is of another run: its recipe differs"):
            runs.go("spos", run)


FILES = (
    "MANIFEST",
    "exposure.safetensors",
    "optimizer.safetensors",
    "state.json",
    "teacher.safetensors",
    "weights.safetensors",
)


@pytest.fixture(scope="module")
def stopped(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 18 and 19."""
    run = RunDirectory(tmp_path_factory.mktemp("stopped") / "run")
    runs.go("ps", run, resume=False, stop=19)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-000018", "step-000019"]
    assert sorted(p.name for p in (run.checkpoints / "step-000019").iterdir()) == sorted(FILES)
    return run.path


class TestDamaged:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
    def test_the_one_before_is_used(self, runs: Runs, stopped: Path, tmp_path: Path, name: str, how: str) -> None:
        run = RunDirectory(shutil.copytree(stopped, tmp_path / "run"))
        self.damage(run.checkpoints / "step-000019" / name, how)
        with pytest.warns(UserWarning, match=r"step-000019.* is damaged.*; using the one before it"):
            weights = runs.go("ps", run)
        runs.check("ps", weights, run)

    def test_all_damaged_is_a_sentence(self, runs: Runs, stopped: Path, tmp_path: Path) -> None:
        run = RunDirectory(shutil.copytree(stopped, tmp_path / "run"))
        for path in run.checkpoints.iterdir():
            self.damage(path / "weights.safetensors", "flipped")
        with (
            pytest.warns(UserWarning, match="step-000019"),
            pytest.raises(UserError, match=r"step-000018/weights.safetensors is damaged: its checksum"),
        ):
            runs.go("ps", run)

    def test_a_half_written_checkpoint_is_passed_over(self, runs: Runs, stopped: Path, tmp_path: Path) -> None:
        run = RunDirectory(shutil.copytree(stopped, tmp_path / "run"))
        partial = run.checkpoints / ".step-000020.partial"
        shutil.copytree(run.checkpoints / "step-000018", partial)
        (partial / "MANIFEST").unlink()
        runs.check("ps", runs.go("ps", run), run)
        assert not partial.exists()

    @staticmethod
    def damage(file: Path, how: str) -> None:
        content = bytearray(file.read_bytes())
        if how == "deleted":
            file.unlink()
        elif how == "truncated":
            file.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 1
            file.write_bytes(content)


@pytest.mark.long
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Twenty SIGKILLs at random moments, and a death before every single file operation of a run."""
    command, root = [sys.executable, "-m", "tests.support.killed_run", str(tmp_path)], Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True, timeout=250)
    found = json.loads(result.stdout)
    by_chance = found["random"]
    assert by_chance["kills"] == 20
    assert by_chance["advanced"] >= 5  # many in the middle of a run
    assert by_chance["files"] == [
        "exposure.npz",
        "exposure.safetensors",
        "metrics",
        "optimizer.safetensors",
        "teacher.safetensors",
        "weights.safetensors",
    ]
    assert all(by_chance["equal"])
    assert found["every"]["deaths"] >= 25
    assert found["every"]["equal"] is True


class TestSigterm:
    OPTIONS = ("--recipe", "spos", "--epochs", "4", "--width", "0.25", "--threads", "1", "--device", "cpu")

    @staticmethod
    def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
        environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(Path(trainonce.__file__).parents[1])}
        return subprocess.Popen(
            [sys.executable, "-m", "trainonce", "train", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_the_command_saves_and_goes_on(self, tmp_path: Path) -> None:
        first = self.start("digits", *self.OPTIONS, "--out", "run", "--checkpoint-every", "1000", folder=tmp_path)
        run = RunDirectory(tmp_path / "run")
        deadline = time.monotonic() + 120
        while not run.metrics_file.exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        began = time.monotonic()
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=60)
        assert time.monotonic() - began < 10
        assert first.returncode == 143, said
        assert "Stopped and saved. Go on with: trainonce train --resume run" in said
        assert "Traceback" not in said
        saved = checkpoint.load_latest(run.checkpoints)
        assert saved is not None
        assert 20 <= saved.step < 64

        second = command_line.trainonce("train", "--resume", run.path, "--threads", "1", "--device", "cpu")
        assert second.code == 0, second.err
        assert "Trained in" in second.out
        straight = command_line.trainonce("train", "digits", *self.OPTIONS, "--out", tmp_path / "straight")
        assert straight.code == 0, straight.err
        expected = RunDirectory(tmp_path / "straight")
        for name in ("weights", "optimizer"):
            files = [r.checkpoints / "step-000064" / f"{name}.safetensors" for r in (run, expected)]
            assert files[0].read_bytes() == files[1].read_bytes()
        assert timeless(run.metrics()) == timeless(expected.metrics())
        assert run.exposure_file.read_bytes() == expected.exposure_file.read_bytes()
        assert run.forgetting_file.read_bytes() == expected.forgetting_file.read_bytes()
