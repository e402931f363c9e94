"""The commands on a subnet: `finetune` from a real run, `push`, and a sentence for every refusal."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.changed_run import configured
from tests.support.command_line import trainonce

from trainonce.cli import display
from trainonce.data import load_dataset
from trainonce.evaluation.evaluator import Score
from trainonce.records import to_json
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.subnets import read_subnet
from trainonce.subnets.finetune import FinetuneProgress

SMALL = ("--width", "0.25", "--batch-size", "256", "--device", "cpu")
DEVICE = ("--device", "cpu")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("story") / "run"
    result = trainonce("train", "digits", "--recipe", "spos", "--epochs", "2", *SMALL, "--out", path, "--probes", "0")
    assert result.code == 0, result.err
    return path


@pytest.fixture(scope="module")
def extracted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subnets") / "subnet"
    result = trainonce("extract", run, "smallest", "--out", path, "--license", "apache-2.0", *DEVICE)
    assert result.code == 0, result.err
    return path


@pytest.fixture
def subnet(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "subnet"))


def rewrite(path: Path, **changes: Any) -> None:
    found = json.loads((path / "config.json").read_text())
    (path / "config.json").write_bytes(to_json({**found, **changes}))


class TestFinetune:
    def test_figures_of_each_class_are_not_those_of_other_weights(self, subnet: Path) -> None:
        assert read_subnet(subnet)[1].per_class is not None
        assert trainonce("finetune", subnet, "--epochs", "1", *DEVICE).code == 0
        assert read_subnet(subnet.with_name("subnet-finetuned"))[1].per_class is None

    def test_the_story(self, run: Path, subnet: Path) -> None:
        before = contents(subnet)
        result = trainonce("finetune", subnet, "--epochs", "3", "--lr", "0.05", "--test", *DEVICE)
        assert result.code == 0, result.err
        assert contents(subnet) == before
        path = subnet.with_name("subnet-finetuned")
        assert str(path) in result.out
        network, described = read_subnet(path)
        description, source = described.to_json(), read_subnet(subnet)[1].to_json()
        again = json.loads(trainonce("evaluate", path, "--split", "test", "--json", *DEVICE).out)
        assert description["per_class"] == {"split": "test", **again["per_class"]}
        assert description["scores"]["test"] == again["score"]
        assert "expected calibration error" in result.out
        how = description["trained"]["finetuned"]
        assert source["trained"]["run"] == how["run"] == str(run.resolve())
        assert description["trained"]["data_fingerprint"] == RunDirectory(run).config().data_fingerprint
        assert how["from_sha256"] == source["sha256"]["model.safetensors"]
        assert how["settings"]["epochs"] == 3
        assert [epoch["epoch"] for epoch in how["epochs"]] == [1, 2, 3]
        assert how["epochs"][-1]["loss"] < how["epochs"][0]["loss"]
        assert how["before"]["validate"] == source["scores"]["validate"], "scored as when it was taken out"
        assert how["after"]["validate"]["loss"] < how["before"]["validate"]["loss"]
        assert description["scores"] == how["after"]
        assert how["after"]["test"]["images"] == 359
        assert description["license"] == "apache-2.0"
        assert network.spec == read_subnet(subnet)[0].spec
        assert f"{Score(**how['after']['test'])} after" in result.out
        assert 'license: "apache-2.0"' in (path / "README.md").read_text()
        assert "fine-tuned: 3 epochs on its own" in (path / "README.md").read_text()

    def test_distilled_twice_with_the_same_seed(self, run: Path, subnet: Path, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(run, tmp_path / "moved"))
        rewrite(subnet, recalibrated={"calibration_images": 50})  # quicker
        options = ("--epochs", "1", "--distill", "--seed", "4", "--run", moved, "--json", *DEVICE)
        found = []
        for name in ("one", "two"):
            result = trainonce("finetune", subnet, *options, "--out", tmp_path / name)
            assert result.code == 0, result.err
            found.append(json.loads(result.out))
        assert found[0]["trained"]["finetuned"]["settings"]["distill"]
        assert found[0]["trained"]["finetuned"]["run"] == str(moved.resolve())
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
        assert weights[0] == weights[1]

    def test_a_dry_run_writes_nothing(self, subnet: Path) -> None:
        result = trainonce("finetune", subnet, "--epochs", "5", "--dry-run", "--json", *DEVICE)
        assert result.code == 0, result.err
        assert json.loads(result.out)["seconds"] > 0
        assert "Would take about" in result.err
        assert [path.name for path in subnet.parent.iterdir()] == ["subnet"]

    def test_ctrl_c_leaves_nothing(self, subnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(at: FinetuneProgress) -> str:
            signal.raise_signal(signal.SIGINT)
            return "interrupted"

        monkeypatch.setattr(display, "finetuning_line", interrupted)
        before = contents(subnet.parent)
        result = trainonce("finetune", subnet, "--epochs", "500", *DEVICE)
        result.refused("^trainonce: stopped; nothing was written, and .*subnet is as it was: run it again", code=130)
        assert contents(subnet.parent) == before
        assert [path.name for path in subnet.parent.iterdir()] == ["subnet"]

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_nor_does_it_before_and_after_training(
        self, subnet: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
    ) -> None:
        before = contents(subnet.parent)
        for name in ("trainonce.pipeline.finetuning.Evaluator", "trainonce.pipeline.finetuning.described_finetuned"):
            with monkeypatch.context() as patched:
                patched.setattr(name, lambda *_, **__: signal.raise_signal(number))
                result = trainonce("finetune", subnet, "--epochs", "1", *DEVICE)
            result.refused("stopped; nothing was written", code=code)
            assert contents(subnet.parent) == before

    def test_no_better_is_said(self, subnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trainonce.subnets.finetune.Finetuned.better", False)
        result = trainonce("finetune", subnet, "--epochs", "1", *DEVICE)
        assert result.code == 0, result.err
        assert "It did not get better on validate" in result.out


class TestFinetuneRefuses:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--epochs", "0"), "the command line: epochs: .* greater than 0"),
            (("--epochs", "1", "--lr", "0"), "the command line: lr: .* greater than 0"),
            (("--epochs", "1", "--run", "/nowhere"), "/nowhere holds no run"),
            (("--epochs", "1", "--device", "cuda:77"), "the device 'cuda:77' cannot be trained on here"),
        ],
    )
    def test_options(self, subnet: Path, options: tuple[str, ...], says: str) -> None:
        trainonce("finetune", subnet, *DEVICE, *options).refused(says)
        assert [path.name for path in subnet.parent.iterdir()] == ["subnet"]

    def test_places(self, subnet: Path, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "holiday.jpg").write_text("irreplaceable")
        trainonce("finetune", subnet, "--epochs", "1", "--out", tmp_path / "photos").refused("is not a subnet: name")
        trainonce("finetune", subnet, "--epochs", "1", "--out", subnet).refused("is the subnet to start from: name")
        assert (tmp_path / "photos" / "holiday.jpg").read_text() == "irreplaceable"

    @pytest.mark.parametrize(
        ("trained", "says"),
        [
            ({"run": "/gone"}, r"was taken from /gone, where there is no run now: say where it is with --run"),
            ({}, "does not say which run it was taken from: name it with --run"),
            (None, "does not say which run it was taken from: name it with --run"),
            ("x", "is not consistent as a subnet: its 'trained' is"),
        ],
    )
    def test_no_run(self, subnet: Path, trained: object, says: str) -> None:
        rewrite(subnet, trained=trained)
        trainonce("finetune", subnet, "--epochs", "1", *DEVICE).refused(says)

    def test_the_runs_images_are_gone(self, run: Path, subnet: Path, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(run, tmp_path / "moved"))
        config = json.loads((moved / "run.json").read_text())
        config["data"]["name_or_path"] = "/nowhere/pets"
        configured(moved, config)
        trainonce("finetune", subnet, "--epochs", "1", "--run", moved, *DEVICE).refused("were at /nowhere/pets and are")

    def test_other_images(self, subnet: Path) -> None:
        rewrite(subnet, classes=list("abcdefghij"))
        trainonce("finetune", subnet, "--epochs", "1", *DEVICE).refused("their classes differ")

    def test_images_of_another_size(self, subnet: Path) -> None:
        preprocessing = json.loads((subnet / "config.json").read_text())["preprocessing"]
        rewrite(subnet, preprocessing={**preprocessing, "image_size": 16})
        trainonce("finetune", subnet, "--epochs", "1", *DEVICE).refused("their sizes differ")

    def test_the_same_images_divided_otherwise(self, run: Path, subnet: Path, tmp_path: Path) -> None:
        """The other run's test split has images that this subnet was trained on."""
        other = Path(shutil.copytree(run, tmp_path / "other"))
        config = json.loads((other / "run.json").read_text())
        config["data"]["split_seed"] = 1
        config["data_fingerprint"] = load_dataset("digits", split_seed=1).fingerprint()
        configured(other, config)
        options = ("--epochs", "1", "--run", other, *DEVICE)
        trainonce("finetune", subnet, *options).refused("made for other images than .*: their fingerprints differ")
        trained = json.loads((subnet / "config.json").read_text())["trained"]
        del trained["data_fingerprint"]  # as older subnets are, of which more cannot be told
        rewrite(subnet, trained=trained, recalibrated={"calibration_images": 50})
        assert trainonce("finetune", subnet, *options, "--dry-run").code == 0

    def test_a_calibration_that_is_none(self, subnet: Path) -> None:
        rewrite(subnet, recalibrated={"calibration_images": -3})
        trainonce("finetune", subnet, "--epochs", "1", *DEVICE).refused("recalibrated: calibration_images")

    def test_no_subnet(self, run: Path, tmp_path: Path) -> None:
        with_one = tmp_path / "run"
        (with_one / "ship/phone").mkdir(parents=True)
        for name in ("run.json", "ship/phone/config.json"):
            (with_one / name).write_text("{}", encoding="utf-8")
        for path, why in (
            (tmp_path / "nothing", "does not exist: name a directory that `trainonce extract` wrote"),
            (tmp_path, r"is no subnet's directory \(there is no config.json in it\)"),
            (run / "run.json", "is a file, and no subnet's directory"),
            (run, "is a run, and no subnet's directory: take a subnet out of it with `trainonce extract"),
            (with_one, rf"is a run, .*: name its subnet {with_one}/ship/phone, or take out another with"),
        ):
            trainonce("finetune", path, "--epochs", "1").refused(why)
            trainonce("push", path, "someone/pets").refused(why)


class TestEvaluateOne:
    """One subnet, class by class, of a run or taken out: the same figures, and nothing is written."""

    def test_it_is_what_extract_found(self, run: Path, subnet: Path) -> None:
        before = contents(run)
        described = read_subnet(subnet)[1].to_json()
        for asked in ((run, "--arch", "smallest"), (subnet,)):
            result = trainonce("evaluate", *asked, "--json", *DEVICE)
            assert result.code == 0, result.err
            told = json.loads(result.out)
            assert told["architecture"] == described["architecture"]
            assert told["score"] == described["scores"]["validate"]
            assert {"split": "validate", **told["per_class"]} == described["per_class"]
            assert (told["macs"], told["classes"]) == (described["macs"], list("0123456789"))
        assert contents(run) == before

    def test_what_it_says(self, subnet: Path) -> None:
        told = json.loads(trainonce("evaluate", subnet, "--split", "test", "--json", *DEVICE).out)
        result, found = trainonce("evaluate", subnet, "--split", "test", *DEVICE), told["per_class"]
        score = Score(**told["score"])
        assert sum(map(sum, found["confusion"])) == score.images == 359
        assert f"{score} on test" in result.out
        rows = {line.split()[0]: line.split() for line in result.out.splitlines() if line[:2].strip().isdigit()}
        for number, recall in enumerate(found["recall"]):
            assert rows[str(number)][1:3] == [str(sum(found["confusion"][number])), f"{recall:.1f}%"]
        worst = found["worst"][0]
        named = f"image {worst['row']}: {worst['actual']}, taken for {worst['taken_for']} with "
        assert f"{named}{worst['probability']:.1%}" in result.out

    def test_what_is_refused(self, run: Path, subnet: Path) -> None:
        trainonce("evaluate", subnet, "--arch", "smallest", *DEVICE).refused("is a subnet already")
        trainonce("evaluate", run, "--arch", "smallest", "--workers", "2").refused("--workers .* together with --arch")
        trainonce("evaluate", subnet, "--seed", "2").refused("--seed cannot be given together with the directory of a")
        trainonce("evaluate", run, "--run", run, *DEVICE).refused("--run goes with the directory of a subnet")
        trainonce("evaluate", run, "--run", run, "--arch", "largest", *DEVICE).refused("is no subnet: name one")


class TestExtractRefuses:
    def test_scores_that_are_not_finite(self, run: Path, tmp_path: Path) -> None:
        moved = RunDirectory(shutil.copytree(run, tmp_path / "moved"))
        net, step = moved.load_supernet()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1e30)  # finite, as every checkpoint is
        checkpoint.save(moved.checkpoints, step + 1, {"weights": net.state_dict()}, {"step": step + 1})
        result = trainonce("extract", moved.path, "smallest", "--out", tmp_path / "out", *DEVICE)
        result.refused("the scores are not finite: the loss on validate is (nan|inf); nothing was written", code=1)
        assert not (tmp_path / "out").exists()

    def test_a_place_is_looked_at_before_the_work(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr("trainonce.pipeline.extracting.Evaluator")
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "holiday.jpg").write_text("irreplaceable")
        trainonce("extract", run, "smallest", "--out", tmp_path / "photos", *DEVICE).refused("is not a subnet: name")


class TestPush:
    def test_a_dry_run(self, subnet: Path) -> None:
        result = trainonce("push", subnet, "someone/pets", "--dry-run", "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["files"] == {path.name: path.stat().st_size for path in subnet.iterdir()}
        assert "config.json" in trainonce("push", subnet, "someone/pets", "--dry-run").out

    def test_options_arrive(self, subnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[Any, ...]] = []

        def pushed(path: Path, repo_id: str, *, private: bool, token: str | None, commit_message: str | None) -> str:
            seen.append((path, repo_id, private, token, commit_message))
            return "https://huggingface.co/someone/pets/commit/1"

        monkeypatch.setattr("trainonce.pipeline.hub.push_to_hub", pushed)
        options = ("--private", "--token", "hf_x", "--message", "Pets")
        result = trainonce("push", subnet, "someone/pets", *options)
        assert result.out.strip().endswith("https://huggingface.co/someone/pets/commit/1")
        assert seen == [(subnet, "someone/pets", True, "hf_x", "Pets")]
        assert "hf_x" not in result.out + result.err

    def test_without_the_extra(self, subnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        trainonce("push", subnet, "someone/pets").refused(r"pip install 'trainonce\[hub\]'")

    def test_a_bad_name(self, subnet: Path) -> None:
        trainonce("push", subnet, "a/b/c").refused("is not the name of a repository")


@pytest.mark.parametrize("command", ["finetune", "push"])
def test_help(command: str) -> None:
    result = trainonce(command, "--help")
    assert result.code == 0
    assert "SUBNET" in result.out
