"""The stages from Python: each writes and returns what its command does, and refuses with a `UserError`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import trainonce

from trainonce import RunError, UserError, pipeline
from trainonce.pipeline.evaluating import Evaluated
from trainonce.pipeline.extracting import Extracted
from trainonce.pipeline.searching import Searched
from trainonce.pipeline.training import Trained

PASSING = {"sum", "seconds", "provenance", "run", "command", "latency_ms"}
"""Keys whose values differ between two runs of the same: times, places, and sums over them."""


def settled(value: Any) -> Any:
    """A record without what passes."""
    if isinstance(value, dict):
        return {key: settled(inner) for key, inner in value.items() if key not in PASSING}
    return [settled(inner) for inner in value] if isinstance(value, list | tuple) else value


def records(folder: Path) -> dict[str, Any]:
    """What the files of a run say, by name; of weights their bytes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = settled(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [settled(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the commands: trained, evaluated, searched, and a subnet of it extracted."""
    run = tmp_path_factory.mktemp("commanded") / "run"
    small = ("--recipe", "spos", "--epochs", "1", "--batch-size", "256", "--width", "0.25")
    for words in (
        ("train", "digits", *small, "--out", run, "--keep-at", "0.5", "--device", "cpu"),
        ("evaluate", run, "--buckets", "0.3,0.6", "--bucket-half-width", "0.1", "--per-bucket", "2", "--device", "cpu"),
        ("search", run, "--max-params", "0.6M", "--scores", "3", "--test", "--device", "cpu"),
        ("extract", run, "--max-macs", "0.4", "--test", "--license", "mit", "--out", run / "subnet", "--device", "cpu"),
        (
            "finetune",
            run / "subnet",
            "--run",
            run,
            "--epochs",
            "1",
            "--test",
            "--out",
            run / "tuned",
            "--device",
            "cpu",
        ),
        ("export", run / "subnet", "--to", "onnx", "--to", "torch", "--run", run, "--images", "4"),
        ("measure", run, "--probes", "2", "--batches", "2", "--calibration-images", "40", "--device", "cpu"),
    ):
        done = trainonce(*words)
        assert done.code == 0, done.err
    return run


class Story:
    """The same from Python, with what each stage gave and called."""

    def __init__(self, folder: Path) -> None:
        self.run, self.called = folder / "run", list[str]()

        def called(name: str) -> Callable[..., None]:
            return lambda *_: self.called.append(name)

        self.trained: Trained = pipeline.train(
            "digits",
            recipe="spos",
            epochs=1,
            batch_size=256,
            width=0.25,
            out=str(self.run),
            keep_at=(0.5,),
            device="cpu",
            on_plan=called("plan"),
            on_baseline=called("baseline"),
            on_start=called("start"),
            on_progress=called("progress"),
        )
        self.evaluated: Evaluated = pipeline.evaluate(
            self.run, buckets=(0.3, 0.6), bucket_half_width=0.1, per_bucket=2, device="cpu"
        )
        self.searched: Searched = pipeline.search(self.run, max_params=0.6, scores=3, test=True, device="cpu")
        self.extracted: Extracted = pipeline.extract(
            str(self.run), max_macs=0.4, test=True, license="mit", out=self.run / "subnet", device="cpu"
        )
        subnet = str(self.extracted.path)
        self.finetuned = pipeline.finetune(
            subnet, 1, run=self.run, test=True, out=self.run / "tuned", device="cpu", on_start=called("tuning")
        )
        self.exports = pipeline.export(subnet, ("onnx", "torch"), run=self.run, images=4)
        self.measured = pipeline.measure(
            self.run, probes=2, batches=2, calibration_images=40, device="cpu", on_step=called("measuring")
        )


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("called"))


def test_records_are_the_commands(commanded: Path, story: Story) -> None:
    ours, theirs = records(story.run), records(commanded)
    assert set(ours) == set(theirs)
    assert {"run.json", "metrics.jsonl", "population.jsonl", "search.jsonl", "front.json"} < set(ours)
    assert any(name.endswith("weights.safetensors") for name in ours)
    for name, found in ours.items():
        assert found == theirs[name], name


def test_training_tells_how_it_ended(story: Story) -> None:
    done = story.trained
    assert done.finished
    assert done.metrics == done.plan.run.metrics()[-1]
    assert done.plan.run.path == story.run
    assert story.called[:3] == ["plan", "baseline", "start"]
    assert set(story.called[3:]) == {"progress", "tuning", "measuring"}


def test_a_population_tells_what_is_recorded(commanded: Path, story: Story) -> None:
    done = story.evaluated
    assert done.finished
    assert {line.arch: line for line in done.lines} == {line.arch: line for line in done.plan.run.population()}
    words = ("--buckets", "0.3,0.6", "--bucket-half-width", "0.1", "--per-bucket", "2", "--device", "cpu", "--json")
    printed = json.loads(trainonce("evaluate", commanded, *words).out)["buckets"]
    assert [summary.median for summary in done.summaries] == [bucket["median"] for bucket in printed]


def test_a_search_tells_what_front_json_says(story: Story) -> None:
    found = json.loads((story.run / "front.json").read_text())
    assert story.searched.front is not None
    assert settled(story.searched.front.to_json()) == settled(found)
    assert story.searched.result is not None
    assert str(story.searched.result.search.best.arch) == found["search"]["best"]["arch"]
    assert story.searched.best is not None
    assert story.searched.best.to_json() == found["best"]
    assert story.searched.test is not None
    assert story.searched.test.to_json() == found["test"]


def test_a_subnet_tells_what_is_written(story: Story) -> None:
    done = story.extracted
    assert done.path == story.run / "subnet"
    assert (
        settled(json.loads((done.path / "config.json").read_text()))["scores"] == done.description.to_json()["scores"]
    )
    assert set(done.scores) == {"validate", "test"}
    assert done.cost.macs <= 0.4e6


def test_fine_tuning_tells_what_is_written(story: Story) -> None:
    done = story.finetuned
    assert done.finished
    assert done.result is not None
    assert done.description is not None
    config = json.loads((story.run / "tuned" / "config.json").read_text())
    assert config["trained"]["finetuned"]["after"] == done.description.to_json()["trained"]["finetuned"]["after"]
    assert done.result.after.top1 == config["trained"]["finetuned"]["after"]["validate"]["top1"]


def test_stopped_fine_tuning_writes_nothing(story: Story, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    done = pipeline.finetune(story.extracted.path, 1, run=story.run, out=out, device="cpu", should_stop=lambda: True)
    assert (done.finished, done.result) == (False, None)
    assert not out.exists()


def test_exports_tell_what_is_certified(story: Story) -> None:
    assert [one.target.name for one in story.exports.done] == ["onnx", "torch"]
    assert story.exports.failed == {}
    for one in story.exports.done:
        assert one.file.is_file()
        assert one.certificate.passed
        assert json.loads((one.place / "certificate.json").read_text())["verdict"] == one.certificate.verdict


def test_a_target_that_fails_beside_others_is_told(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RunError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("trainonce.pipeline.exporting.check_export", refuse)
        told = pipeline.export(story.extracted.path, ("onnx", "torch"), run=story.run, images=1, check=True)
        assert (told.done, told.failed) == ((), {"onnx": "no room", "torch": "no room"})
        with pytest.raises(RunError, match="no room"):
            pipeline.export(story.extracted.path, "onnx", run=story.run, images=1, check=True)


def test_measures_tell_what_is_recorded(story: Story) -> None:
    found = json.loads((story.run / "interference.json").read_text())
    assert settled(story.measured.found.to_json()) == settled(found)
    assert story.called.count("measuring") == 2, "at half of the training, and at its end"


STUDY = """
name = "mini"
question = "Does it run?"
seeds = [0]
[[arms]]
name = "a"
recipe = "spos"
epochs = 0.3
model = { width_mult = 0.25, depths = [1] }
[evaluate]
per_bucket = 0
probes = ["smallest", "largest"]
calibration_images = 50
"""


def test_a_study_is_the_commands(tmp_path: Path) -> None:
    file, out = tmp_path / "mini.toml", tmp_path / "study"
    file.write_text(STUDY)
    planned = pipeline.study(file, "digits", out=out, device="cpu", dry_run=True)
    assert (len(planned.plan.missing), planned.conclusion) == (1, None)
    assert planned.seconds > 0
    assert not out.exists()
    ran: list[str] = []
    done = pipeline.study(file, "digits", out=out, device="cpu", workers=1, on_run=lambda line: ran.append(line.run))
    assert done.finished
    assert ran == ["a-seed0"]
    again = json.loads(trainonce("study", file, "digits", "--out", out, "--device", "cpu", "--json").out)
    assert done.conclusion is not None
    assert again["conclusion"] == done.conclusion.to_json()
    assert [arm["top1"] for arm in again["arms"]] == [arm.top1 for arm in done.arms]


def test_a_dry_run_writes_nothing(story: Story, tmp_path: Path) -> None:
    done = pipeline.train("digits", epochs=1, width=0.25, out=tmp_path / "run", device="cpu", dry_run=True)
    assert (done.finished, done.metrics) == (False, None)
    assert done.seconds > 0
    assert not (tmp_path / "run").exists()
    before = records(story.run)
    assert pipeline.evaluate(story.run, per_bucket=1, seed=9, device="cpu", dry_run=True).seconds > 0
    assert pipeline.search(story.run, scores=2, seed=9, device="cpu", dry_run=True).result is None
    assert records(story.run) == before


def test_what_is_stopped_goes_on(commanded: Path, tmp_path: Path) -> None:
    half = pipeline.train(
        "digits",
        recipe="spos",
        epochs=1,
        batch_size=256,
        width=0.25,
        out=tmp_path,
        device="cpu",
        should_stop=lambda: True,
    )
    assert (half.finished, half.metrics) == (False, None)
    whole = pipeline.train(resume=tmp_path, device="cpu")
    assert whole.finished
    assert whole.plan.resumed_at is not None
    last = "checkpoints/step-000004/weights.safetensors"
    assert records(tmp_path)[last] == records(commanded)[last]


def test_a_report_is_the_commands(story: Story, tmp_path: Path) -> None:
    done = pipeline.report(story.run, out=str(tmp_path / "ours.html"))
    said = json.loads(trainonce("report", story.run, "--out", tmp_path / "theirs.html", "--json").out)
    assert list(done.groups) == said["groups"]
    assert abs(done.page.stat().st_size - said["bytes"]) < 100  # its time of day
    own = pipeline.report(story.run).page
    before = own.read_bytes()
    shutil.copytree(story.run, tmp_path / "other")
    assert pipeline.report(story.run, tmp_path / "other").page == story.run / "compared.html"
    assert own.read_bytes() == before, "which is of one run"


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "train": (lambda run: pipeline.train("no-such"), "'no-such' is not a data set"),
    "train nothing": (lambda run: pipeline.train(), "name a data set"),
    "train for no time": (lambda run: pipeline.train("digits", passes=-1), "--passes must be more than 0, not -1"),
    "evaluate nothing": (lambda run: pipeline.evaluate(run, per_bucket=0), "at least one subnet of each bucket"),
    "train beside": (
        lambda run: pipeline.train(resume=run, epochs=3),
        "--epochs cannot be given together with --resume",
    ),
    "train both": (lambda run: pipeline.train("digits", epochs=1, passes=1), "give --epochs or --passes, not both"),
    "train precision": (
        lambda run: pipeline.train("digits", precision="float16", device="cpu"),
        "^the options: precision",
    ),
    "evaluate": (lambda run: pipeline.evaluate(run / "nowhere"), "nowhere"),
    "evaluate buckets": (lambda run: pipeline.evaluate(run, buckets=(1, 1.2), device="cpu"), "overlap"),
    "extract": (lambda run: pipeline.extract(run, "d9", device="cpu"), "d9"),
    "extract beside": (
        lambda run: pipeline.extract(run, "largest", max_macs=1, device="cpu"),
        "--max-macs cannot be given together with an architecture",
    ),
    "search": (
        lambda run: pipeline.search(run, max_macs="1 parsec", device="cpu"),
        "--max-macs takes a positive number",
    ),
    "finetune": (lambda run: pipeline.finetune(run / "subnet", 0, run=run), "^the options: epochs"),
    "finetune itself": (lambda run: pipeline.finetune(run / "subnet", 1, out=run / "subnet"), "is the subnet to start"),
    "export": (lambda run: pipeline.export(run / "subnet", "tflite"), "unknown target 'tflite'"),
    "measure": (lambda run: pipeline.measure(run, batches=0, device="cpu"), "^the options: batches"),
    "study": (lambda run: pipeline.study("why", "digits"), "unknown study 'why'"),
    "study rates": (lambda run: pipeline.study("baseline", "digits", rate={"rss": 0}), "--rate takes RECIPE=FACTOR"),
    "fit": (lambda run: pipeline.fit("digits", 0, device="cpu"), "^the options: minutes"),
    "report": (lambda run: pipeline.report(run, out="page.txt"), r"must end in \.html"),
    "report nothing": (lambda run: pipeline.report(), "name the directory"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, story: Story) -> None:
    call, sentence = REFUSALS[name]
    with pytest.raises(UserError, match=sentence):
        call(story.run)
