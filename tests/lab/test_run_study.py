"""Running a study: everything once, whatever is killed; and nothing where it is another study."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainonce.data import DataSet, load_dataset
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import Evaluator
from trainonce.lab.studies.run_study import StudyDirectory, StudyRunner, run_study
from trainonce.lab.studies.study import Study
from trainonce.models import build
from trainonce.pipeline.pace import GPU_WARM_STEPS, Pace
from trainonce.recipes import RECIPES, Augmentation, AugmentationChange, Crop, Phase, Recipe
from trainonce.records import read_json, read_lines, to_json, write_lines
from trainonce.training.settings import TrainSettings

HERE = Path(__file__).parents[1] / "support"
SOON_S = 120.0
COMPARED = ("run", "arm", "seed", "arch", "macs", "params", "top1", "images", "split", "bucket", "probe")

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Study]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        yield importlib.import_module("study_run").tiny_study()


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def straight(tiny: Study, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study run in this process, one run after the other."""
    directory = StudyDirectory(tmp_path_factory.mktemp("straight") / "study")
    directory.claim(tiny, digits, provenance={})
    assert run_study(tiny, directory, digits)
    return directory.path


def results(path: Path) -> list[dict[str, Any]]:
    lines = [line.model_dump(include={*COMPARED}) for line in StudyDirectory(path).results()]
    return sorted(lines, key=lambda line: (str(line["run"]), str(line["arch"])))


def step_of(path: Path, run: str) -> int:
    steps = (path / "runs" / run / "checkpoints").glob("step-*")
    return max((int(p.name[5:]) for p in steps), default=0)


def wait_for(true: Callable[[], Any]) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "study_run.py"), str(path)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in found}
    return [child for child, command in commands.items() if "spawn_main" in command]


@pytest.mark.long
def test_every_result_once_whoever_is_killed(straight: Path, tmp_path: Path) -> None:
    """A worker is killed in the middle of its run, then the whole program, then it is told to stop; then it ends."""
    path = tmp_path / "study"
    with start(path) as program:
        wait_for(lambda: step_of(path, "rss-seed0") >= 5)
        for child in children(program.pid)[:1]:
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: StudyDirectory(path).finished())
        program.kill()
        _, said = program.communicate()
    assert "a worker died (ended by SIGKILL); what it was at is done again" in said
    begun = {run.name: step_of(path, run.name) for run in (path / "runs").iterdir()}
    done = len(StudyDirectory(path).finished())
    with start(path) as program:
        wait_for(lambda: any(step_of(path, p.name) > begun.get(p.name, 0) for p in (path / "runs").iterdir()))
        program.terminate()
        assert program.wait(SOON_S) == 3
    assert done <= len(StudyDirectory(path).finished()) < 4
    with start(path) as program:
        assert program.wait(SOON_S) == 0
    assert results(path) == results(straight)
    assert len(StudyDirectory(path).finished()) == 4
    for run in (path / "runs").iterdir():
        lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert lines == [20, 24], "resumed, not trained twice"


def test_what_is_recorded(straight: Path, tiny: Study) -> None:
    directory = StudyDirectory(straight)
    found = results(straight)
    assert len(found) == 8
    assert {line["run"] for line in found} == {run.name for run in tiny.runs}
    assert all(line["probe"] and line["split"] == "validate" for line in found)
    for line in directory.finished():
        assert line.steps == 24
        assert line.lr_sum == pytest.approx(0.01 / 4 * (24 / 2 + 0.5)), "a cosine from the top to nearly none"
        assert line.train_seconds > 0
        assert (line.beside, line.threads) == (1, torch.get_num_threads())
    study = json.loads(directory.study_file.read_text())
    assert [arm["name"] for arm in study["arms"]] == ["rss", "spos"]
    assert {"name", "about", "question", "data", "seeds", "scale", "runs", "evaluate", "provenance"} <= set(study)
    for run in tiny.runs:
        assert len(list(directory.run(run.name).checkpoints.glob("step-*"))) == 1, "disk is kept small"


def test_on_a_cluster_a_worker_takes_the_gpu_it_is_given(
    tiny: Study, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how many runs are beside it is not made up."""
    given: list[StudyRunner] = []
    monkeypatch.setattr("trainonce.lab.studies.run_study.fan_out", lambda runner, *_, **__: given.append(runner))
    directory = StudyDirectory(tmp_path)
    for cluster, workers in (("ray", None), ("ray", 3), ("local", None)):
        run_study(tiny, directory, digits, device="cuda:1", cluster=cluster, workers=workers)
    assert [(runner.device, runner.beside) for runner in given] == [("cuda", None), ("cuda", 3), ("cuda:1", 1)]


def test_a_cut_off_recording_is_made_whole(straight: Path, tiny: Study, digits: DataSet, tmp_path: Path) -> None:
    """Results of a run without its line in times.jsonl are recorded again, once, without training."""
    directory = StudyDirectory(shutil.copytree(straight, tmp_path / "study"))
    write_lines(directory.times_file, read_lines(directory.times_file)[:3])
    lines = read_lines(directory.results_file)
    write_lines(directory.results_file, lines[:-1])
    with directory.results_file.open("a") as file:
        file.write(json.dumps(lines[-1])[:20])
    assert run_study(tiny, directory, digits)
    assert results(directory.path) == results(straight)
    assert len(directory.results_file.read_text().splitlines()) == 8


class TestAnotherStudy:
    def refuses(self, straight: Path, study: Study, data: DataSet, sentence: str) -> None:
        before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
        with pytest.raises(UserError, match=sentence):
            StudyDirectory(straight).claim(study, data, provenance={})
        assert {p: p.stat().st_mtime_ns for p in straight.rglob("*")} == before

    def test_the_same_goes_on(self, straight: Path, tiny: Study, digits: DataSet) -> None:
        reworded = tiny.model_copy(update={"question": "Which one?"})
        StudyDirectory(straight).claim(reworded, digits, provenance={"command": "other"})

    def test_one_begun_before_designs_were_recorded_goes_on(
        self, straight: Path, tiny: Study, digits: DataSet, tmp_path: Path
    ) -> None:
        directory = StudyDirectory(tmp_path)
        recorded = read_json(straight / "study.json")
        assert recorded.pop("design", "absent") is None
        directory.study_file.write_bytes(to_json(recorded))
        directory.claim(tiny.model_copy(update={"design": "baseline"}), digits, provenance={})
        assert read_json(directory.study_file) == recorded

    def test_one_begun_before_a_setting_was_known_goes_on(
        self, straight: Path, tiny: Study, digits: DataSet, tmp_path: Path
    ) -> None:
        directory = StudyDirectory(tmp_path)
        recorded = read_json(straight / "study.json")
        for run in recorded["runs"]:
            assert run["recipe"].pop("class_balance") == 0
        directory.study_file.write_bytes(to_json(recorded))
        directory.claim(tiny, digits, provenance={})
        first = tiny.runs[0].recipe.model_copy(update={"class_balance": 0.5})
        other = tiny.model_copy(update={"runs": (tiny.runs[0].model_copy(update={"recipe": first}), *tiny.runs[1:])})
        self.refuses(tmp_path, other, digits, "is of another study: the recipe of run 'rss-seed0' differs")

    def test_another_recipe(self, straight: Path, tiny: Study, digits: DataSet) -> None:
        longer = tiny.runs[1].model_copy(update={"recipe": tiny.runs[1].recipe.scaled(2)})
        other = tiny.model_copy(update={"runs": (tiny.runs[0], longer, *tiny.runs[2:])})
        self.refuses(straight, other, digits, "is of another study: the recipe of run 'spos-seed0' differs")

    def test_fewer_runs_and_more(self, straight: Path, tiny: Study, digits: DataSet) -> None:
        self.refuses(straight, tiny.model_copy(update={"runs": tiny.runs[:3]}), digits, "it has 4 runs, not 3")
        more = tiny.runs[0].model_copy(update={"name": "new"})
        more_runs = tiny.model_copy(update={"runs": (*tiny.runs, more)})
        self.refuses(straight, more_runs, digits, "it has no run 'new'")

    def test_another_evaluation(self, straight: Path, tiny: Study, digits: DataSet) -> None:
        other = tiny.model_copy(update={"evaluate": tiny.evaluate.model_copy(update={"per_bucket": 2})})
        self.refuses(straight, other, digits, "its evaluate was .* and is .*--out")

    def test_other_images(self, straight: Path, tiny: Study) -> None:
        self.refuses(straight, tiny, load_dataset("digits", split_seed=1), "is of another study: its data was")

    def test_a_runs_directory(self, straight: Path, tiny: Study, digits: DataSet) -> None:
        self.refuses(straight / "runs" / "rss-seed0", tiny, digits, "holds a run: name another directory")


def test_the_pace_is_measured_and_remembered(tiny: Study, digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Pace(digits)
    net = build(tiny.runs[0].family, tiny.runs[0].model)
    recipe = RECIPES["rss"].scaled(0.001).with_batch_size(16)
    once = meter.seconds(net, recipe)
    assert once > 0
    adamw = recipe.model_copy(update={"optimizer": "adamw"})
    other = meter.seconds(net, adamw)
    monkeypatch.setattr("trainonce.pipeline.pace.train_supernet", None)
    assert meter.seconds(net, recipe) == once
    assert meter.seconds(net, adamw) == other != once, "each timed for itself"


@pytest.mark.parametrize(("sides", "timed"), [((8,), 1), ((6, 8), 2), ((4, 6, 8), 3)])
def test_phases_that_train_the_same_part_are_timed_once(
    tiny: Study, digits: DataSet, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, ...], timed: int
) -> None:
    """Of `quick` the first two, where there are two sizes of images; all three, where there is one."""
    asked = list[str]()

    def step(_meter: Pace, _net: Any, _recipe: Any, phase: Phase, _steps: int) -> float:
        asked.append(phase.name)
        return 1.0

    monkeypatch.setattr(Pace, "_timed", step)
    net = build(tiny.runs[0].family, {**tiny.runs[0].model, "resolutions": sides})
    Pace(digits).seconds(net, RECIPES["quick"])
    assert len(asked) == timed


def test_subnets_are_recalibrated_on_images_varied_as_the_recipe_says(
    tiny: Study, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Augmentation | None] = []

    class Noting(Evaluator):
        def __init__(self, data: DataSet, *settings: Any) -> None:
            seen.append(data.augmentation)
            super().__init__(data, *settings)

    monkeypatch.setattr("trainonce.lab.studies.run_study.Evaluator", Noting)
    plain = tiny.runs[0]
    asking = plain.recipe.model_copy(update={"augmentation": AugmentationChange(crop_from=0.9)})
    runs = (plain, plain.model_copy(update={"name": "asking", "seed": 1, "recipe": asking}))
    study = tiny.model_copy(update={"runs": runs})
    directory = StudyDirectory(tmp_path / "study")
    directory.claim(study, digits, provenance={})
    assert run_study(study, directory, digits)
    assert seen == [digits.augmentation, (Crop(scale=(0.9, 1.0)),)]


@pytest.mark.parametrize(("device", "warm"), [("cpu", 1), ("cuda", GPU_WARM_STEPS)])
def test_a_pace_is_measured_as_runs_are_trained(
    tiny: Study, digits: DataSet, monkeypatch: pytest.MonkeyPatch, device: str, warm: int
) -> None:
    """With CUDA graphs where there are any; steps that capture them are not counted."""
    took = [7.0, *[5.0] * warm, *[2.0] * 4]
    clock = [0.0]

    def train(_net: Any, recipe: Recipe, *_: Any, settings: TrainSettings, on_progress: Callable[[Any], None]) -> None:
        assert settings.cuda_graphs
        assert recipe.epochs * (len(digits.train) // 16) == pytest.approx(len(took))
        for seconds in took:
            clock[0] += seconds
            on_progress(None)

    monkeypatch.setattr("trainonce.pipeline.pace.train_supernet", train)
    monkeypatch.setattr("trainonce.pipeline.pace.time.monotonic", lambda: clock[0])
    recipe = RECIPES["rss"].with_batch_size(16).scaled(10 / (len(digits.train) // 16) / RECIPES["rss"].epochs)
    net = build(tiny.runs[0].family, tiny.runs[0].model)
    assert Pace(digits, TrainSettings(device=device)).seconds(net, recipe) == pytest.approx(10 * 2.0)
