"""A person's own family goes through every command by its name, and the page that explains it shows what is tested."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.command_line import trainonce
from tests.support.warm_python import run_python

from trainonce import pipeline, records
from trainonce.errors import UserError
from trainonce.models import FAMILIES, ResNet, build
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory

ROOT = Path(__file__).parent.parent.parent
OWN = "tests.support.small_resnet:SmallResNet"


NARROW = ("--width", "0.25")


@pytest.fixture(scope="module", params=[OWN, "resnet", pytest.param("proxyless_nas", marks=pytest.mark.long)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of each family, trained for a moment by progressive shrinking."""
    path = tmp_path_factory.mktemp("runs") / "run"
    narrow = () if request.param == OWN else NARROW
    options = ("--recipe", "ps", "--epochs", "2", "--train-images", "400", *narrow, "--out", path)
    done = trainonce("train", "digits", "--family", request.param, *options)
    assert done.code == 0, done.err
    lacking = "has no choice of kernel" in done.err
    assert lacking == (request.param in (OWN, "resnet")), done.err
    return RunDirectory(path)


def test_it_goes_through_every_stage(run: RunDirectory, tmp_path: Path) -> None:
    def do(*arguments: str | Path) -> str:
        done = trainonce(*arguments)
        assert done.code == 0, done.err
        return done.out

    do("evaluate", run.path, "--per-bucket", "2", "--buckets", "", "--calibration-images", "64")
    do("search", run.path, "--max-params", "3M", "--scores", "4", "--calibration-images", "64")
    subnet = tmp_path / "subnet"
    do("extract", run.path, "--max-params", "3M", "--test", "--out", tmp_path / "best")
    do("extract", run.path, "smallest", "--test", "--out", subnet)
    do("export", subnet, "--to", "onnx", "--run", run.path, "--images", "8")
    certificate = json.loads((subnet / "export" / "onnx" / "certificate.json").read_text())
    assert certificate["passed"]
    do("finetune", subnet, "--epochs", "1", "--run", run.path, "--out", tmp_path / "tuned")
    do("measure", run.path, "--probes", "2", "--batches", "2", "--calibration-images", "64")
    do("verify", run.path)
    do("verify", subnet)
    do("report", run.path, "--out", tmp_path / "report.html")
    alone = "import torch; from model import load; print(tuple(load('.')(torch.zeros(2, 1, 8, 8)).shape))"
    done = run_python(alone, folder=subnet)
    assert done.stdout.strip() == "(2, 10)", done.stderr


def test_stopped_it_goes_on_by_its_name(run: RunDirectory, tmp_path: Path) -> None:
    """To the weights of a run that was not stopped, to the last bit."""
    config, seen = run.config(), list[int]()

    def soon() -> bool:
        seen.append(len(seen))
        return len(seen) == 5

    width = None if config.family == OWN else 0.25
    half = pipeline.train(
        "digits",
        family=config.family,
        recipe="ps",
        epochs=2,
        train_images=400,
        width=width,
        out=tmp_path / "run",
        should_stop=soon,
    )
    assert not half.finished
    done = trainonce("train", "--resume", tmp_path / "run")
    assert done.code == 0, done.err
    ends = [checkpoint.load_latest(folder.checkpoints) for folder in (run, RunDirectory(tmp_path / "run"))]
    assert all(end is not None for end in ends)
    (step, weights), (other_step, other_weights) = ((e.step, e.tensors["weights"]) for e in ends if e is not None)
    assert step == other_step > 5
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(tensor, other_weights[name]) for name, tensor in weights.items())


def test_names_that_are_no_family(tmp_path: Path) -> None:
    for name, sentence in (
        (
            "resnext",
            r"unknown family 'resnext'; there are mobilenet_v3, proxyless_nas, resnet, and your own as",
        ),
        ("no_such_package:Net", "the family no_such_package:Net cannot be imported: No module named"),
        ("json:JSONDecoder", "json:JSONDecoder is not a family: it is not a subclass of trainonce.Supernet"),
    ):
        trainonce("train", "digits", "--family", name, "--epochs", "1", "--out", tmp_path / "run").refused(sentence)
        assert not (tmp_path / "run").exists()


def test_a_run_whose_family_lies_in_it(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from a stranger is data: nothing in it is imported, wherever Python would look."""
    strange = tmp_path / "strange"
    shutil.copytree(run.path, strange)
    (strange / "evil.py").write_text("raise SystemExit('executed')")
    config = json.loads(run.config_file.read_text()) | {"family": "evil:Net"}
    config.pop("sum", None)
    (strange / "run.json").write_bytes(records.to_json(config))
    monkeypatch.syspath_prepend(strange)
    trainonce("extract", strange, "largest").refused("its family differs; one of them is damaged")
    with pytest.raises(UserError, match=r"the family evil:Net lies in .* itself, whose code is not executed"):
        build("evil:Net", {}, beside=strange)


def test_a_run_whose_recipes_code_lies_in_it(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = tmp_path / "strange"
    shutil.copytree(run.path, strange)
    (strange / "evil_slot.py").write_text("raise SystemExit('executed')")
    config = json.loads(run.config_file.read_text())
    config.pop("sum", None)
    config["recipe"]["augmentation"] = {"also": [{"kind": "own", "function": "evil_slot:f"}]}
    (strange / "run.json").write_bytes(records.to_json(config))
    monkeypatch.syspath_prepend(strange)
    with pytest.raises(UserError, match=r"the function evil_slot:f lies in .* itself, whose code is not executed"):
        RunDirectory(strange).config()


def test_families_are_registered_once() -> None:
    assert FAMILIES["resnet"] is ResNet
    assert list(FAMILIES) == ["mobilenet_v3", "proxyless_nas", "resnet"]


@pytest.mark.parametrize("name", ["small_resnet", "small_resnet_plain"])
def test_the_page_shows_the_example_that_is_tested(name: str) -> None:
    code = (ROOT / "tests" / "support" / f"{name}.py").read_text(encoding="utf-8").strip()
    assert f"```python\n{code}\n```" in (ROOT / "docs" / "family.md").read_text(encoding="utf-8")
