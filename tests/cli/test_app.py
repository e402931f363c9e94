"""The command line: one sentence and an exit code for every refusal, and the story from images to a subnet."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from tests.support.command_line import trainonce

from trainonce.cli.app import app
from trainonce.cli.stopping import Stop
from trainonce.data.formats import FILES
from trainonce.parallel.distributed import Ranks
from trainonce.pipeline import machine, train
from trainonce.recipes import RECIPES
from trainonce.records import count_file
from trainonce.run.directory import RunDirectory
from trainonce.subnets import read_subnet
from trainonce.training.loop import train_supernet

SMALL = ("--width", "0.25", "--batch-size", "256", "--device", "cpu")
GROUP: Any = typer.main.get_command(app)
LATENCY = GROUP.commands["latency"]
COMMANDS = ("train", "evaluate", "search", "extract", "draw", "report", "import-ofa", "list")


def same_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("story") / "run"
    result = trainonce("train", "digits", "--recipe", "spos", "--epochs", "1", *SMALL, "--out", path, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["run"], found["step"], found["phase"]) == (str(path), 4, "random")
    return path


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    result = trainonce("evaluate", trained, "--per-bucket", "2", "--calibration-images", "100", "--device", "cpu")
    assert result.code == 0, result.err
    assert "Top-1 in percent on 180 validate images of digits" in result.out
    assert f"Next: trainonce extract {trained} --max-macs" in result.err
    return trained


def make_images(folder: Path, *classes: str) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


class TestStory:
    def test_evaluate_records_and_does_nothing_twice(self, evaluated: Path) -> None:
        lines = RunDirectory(evaluated).population()
        assert len({line.arch for line in lines}) == len(lines) == 12
        before = same_files(evaluated)
        again = ("evaluate", evaluated, "--per-bucket", "2", "--calibration-images", "100", "--device", "cpu")
        result = trainonce(*again, "--json")
        assert result.code == 0
        assert same_files(evaluated) == before
        buckets = json.loads(result.out)["buckets"]
        assert [bucket["count"] for bucket in buckets] == [2] * 6
        for bucket in buckets:
            inside = [
                line.top1 for line in lines if abs(line.macs - bucket["bucket"]["centre"]) <= bucket["bucket"]["half"]
            ]
            assert bucket["median"] == pytest.approx(sum(inside) / 2)

    def test_extract_the_best_under_a_budget(self, evaluated: Path, tmp_path: Path) -> None:
        lines = RunDirectory(evaluated).population()
        budget = sorted(line.macs for line in lines)[7] / 1e6
        result = trainonce("extract", evaluated, "--max-macs", f"{budget:.9f}", "--out", tmp_path / "best", "--test")
        assert result.code == 0, result.err
        least = min(line.loss for line in lines if line.macs <= budget * 1e6)
        network, described = read_subnet(tmp_path / "best")
        description = described.to_json()
        chosen = next(line for line in lines if line.arch == description["architecture"])
        assert chosen.loss == least
        assert chosen.macs <= budget * 1e6
        assert set(description["scores"]) == {"validate", "test"}
        assert description["scores"]["test"]["images"] == 359
        assert description["classes"] == [str(digit) for digit in range(10)]
        assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
        assert "its output is the same to the last bit" in result.out

    def test_a_test_score_stays_where_the_same_subnet_is_taken_out_again(self, trained: Path, tmp_path: Path) -> None:
        def taken(*options: str) -> dict[str, Any]:
            assert trainonce("extract", trained, "largest", "--out", tmp_path / "one", *options).code == 0
            return read_subnet(tmp_path / "one")[1].to_json()

        tested = taken("--test")
        again = taken()
        assert {split: again["scores"][split] for split in ("validate", "test")} == tested["scores"]
        assert again["per_class"] == tested["per_class"]
        assert tested["per_class"]["split"] == "test"
        assert "test" not in taken("--seed", "7")["scores"], "other statistics of batch norm are another network"

    def test_nor_is_one_kept_of_images_of_another_size(self, tmp_path: Path) -> None:
        """Whose network has the same weights."""
        asked = ("--resolutions", "6,8", "--recipe", "spos", "--epochs", "1", *SMALL)
        assert trainonce("train", "digits", *asked, "--out", tmp_path / "run").code == 0
        small, large = f"{tmp_path / 'small'}", RunDirectory(tmp_path / "run").load_supernet()[0].space.largest()
        for arch, options in ((f"{large}", ("--test",)), (f"{large}".replace("r8", "r6"), ())):
            done = trainonce("extract", tmp_path / "run", arch, "--no-recalibrate", "--out", small, *options)
            assert done.code == 0, done.err
        assert set(read_subnet(Path(small))[1].scores or {}) == {"validate"}

    def test_weights_of_an_unfinished_training_are_said_to_be(self, trained: Path, tmp_path: Path) -> None:
        """Stopped after three of eight steps."""
        asked = iter((False, False))
        options: dict[str, Any] = {"recipe": "spos", "epochs": 2, "width": 0.25, "batch_size": 256, "probes": 0}
        train("digits", **options, out=tmp_path / "run", should_stop=lambda: next(asked, True))
        done = trainonce("extract", tmp_path / "run", "smallest", "--json")
        going_on = f"trainonce train --resume {tmp_path / 'run'} goes on"
        said = f"Warning: {tmp_path / 'run'} was trained for 0.75 of 2 epochs; {going_on}"
        assert said in done.err
        few = ("--per-bucket", "1", "--calibration-images", "100")
        for told in (("evaluate", *few), ("evaluate", "--arch", "smallest"), ("search", "--dry-run")):
            assert said in trainonce(told[0], tmp_path / "run", *told[1:]).err
        kept = json.loads(done.out)["trained"]
        assert (kept["step"], kept["epochs"], kept["passes"]) == (3, 0.75, 0.75)
        whole = trainonce("extract", trained, "smallest", "--json")
        assert json.loads(whole.out)["trained"]["epochs"] == 1
        assert "goes on" not in whole.err

    def test_extract_by_name_without_recalibrating(self, trained: Path) -> None:
        result = trainonce("extract", trained, "smallest", "--no-recalibrate", "--json")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        net, _ = RunDirectory(trained).load_supernet()
        arch = net.space.smallest()
        assert Path(found["path"]) == trained / "subnets" / arch.id
        network, _ = read_subnet(Path(found["path"]))
        x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(network(x), net(x, arch))

    def test_a_finished_run_is_resumed_without_a_change(self, trained: Path) -> None:
        weights = same_files(trained / "checkpoints")
        result = trainonce("train", "--resume", trained, "--device", "cpu")
        assert result.code == 0, result.err
        assert same_files(trained / "checkpoints") == weights

    def test_a_run_stopped_before_its_first_line_has_its_comparison_when_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = RunDirectory(tmp_path / "run")
        told = Stop()
        told.number = signal.SIGTERM
        with monkeypatch.context() as patched:
            patched.setattr("trainonce.cli.tools.stop_on_signal", lambda: nullcontext(told))
            stopped = trainonce("train", "digits", "--recipe", "spos", "--epochs", "1", *SMALL, "--out", run.path)
        assert stopped.code == 128 + signal.SIGTERM, stopped.err
        assert run.baseline() is None
        assert trainonce("train", "--resume", run.path, "--device", "cpu").code == 0
        found = run.baseline()
        assert found is not None
        assert found.top1 > 95
        assert "For comparison" not in trainonce("train", "--resume", run.path, "--device", "cpu").err

    def test_the_comparison_warns_beside_what_it_beats(self, evaluated: Path, tmp_path: Path) -> None:
        """Four steps of training are far below a support vector machine."""
        plain = RunDirectory(evaluated).baseline()
        assert plain is not None
        asked = (
            ("evaluate", evaluated, "--per-bucket", "2", "--calibration-images", "100", "--device", "cpu"),
            ("extract", evaluated, "smallest", "--out", tmp_path / "smallest", "--test"),
        )
        for arguments in asked:
            said = " ".join(trainonce(*arguments).err.split())
            assert f"For comparison: {plain}" in said
            assert re.search(r"Warning: [\d.]+% is [\d.]+ points below that\. Train longer", said)

    def test_an_image_folder(self, tmp_path: Path) -> None:
        images = make_images(tmp_path / "pets", "cat", "dog")
        options = ("--epochs", "1", "--image-size", "8", "--geometry", "tiny", *SMALL, "--batch-size", "8")
        result = trainonce("train", images, *options, "--out", tmp_path / "run")
        assert result.code == 0, result.err
        assert "2 classes" in result.err


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_each_command(self, command: str) -> None:
        result = trainonce(command, "--help")
        assert result.code == 0
        assert re.search(rf"Usage: .* {command} \[OPTIONS\]", result.out)
        assert "--help" in result.out

    @pytest.mark.parametrize("command", ["", *GROUP.commands, *(f"latency {name}" for name in LATENCY.commands)])
    def test_nothing_is_cut_in_a_narrow_terminal(self, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        said = trainonce(*command.split(), "--help").out
        asked: Any = GROUP
        for name in command.split():
            asked = asked.commands[name]
        options = [name for parameter in asked.params for name in parameter.opts if name.startswith("--")]
        assert [name for name in options if not re.search(rf"{name}(?![\w-])", said)] == []
        assert not re.search(r"[a-z](…|\.\.\.$)", said, re.MULTILINE)

    def test_of_all(self) -> None:
        for arguments in (("--help",), ("-h",)):
            result = trainonce(*arguments)
            assert result.code == 0
            assert all(command in result.out for command in COMMANDS)

    def test_list(self) -> None:
        result = trainonce("list")
        assert result.code == 0
        assert all(re.search(rf"^{name} ", result.out, re.MULTILINE) for name in RECIPES)
        found = json.loads(trainonce("list", "--json").out)
        assert set(found["recipes"]) == set(RECIPES)
        assert "digits" in found["data"]
        assert "tiny" in found["families"]["mobilenet_v3"]

    def test_version(self) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+\n", trainonce("--version").out)


class TestDryRun:
    def test_train_writes_nothing(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        result = trainonce("train", "digits", "--epochs", "1", *SMALL, "--out", out, "--dry-run")
        assert result.code == 0, result.err
        assert "Would take about" in result.err
        assert list(tmp_path.iterdir()) == []

    def test_evaluate_writes_nothing(self, trained: Path) -> None:
        before = same_files(trained)
        result = trainonce("evaluate", trained, "--per-bucket", "1", "--calibration-images", "50", "--dry-run")
        assert result.code == 0, result.err
        assert "Would take about" in result.err
        assert same_files(trained) == before
        result = trainonce("evaluate", trained, "--per-bucket", "1", "--dry-run", "--json", "--workers", "3")
        assert json.loads(result.out)["workers"] == 3
        assert "by 3 workers" in result.err
        assert same_files(trained) == before


class TestTrainRefuses:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("digits", "--recipe", "sandwitch"), r"'sandwitch' \(did you mean 'sandwich'\?\).*rss, .*spos"),
            (("digits", "--recipe", "nothing.toml"), r"cannot read the recipe nothing.toml: No such file"),
            (("digitz",), r"'digitz' is not a data set: give one of .*digits"),
            (("nowhere/images",), r"'nowhere/images' is not a data set"),
            (("digits", "--geometry", "huge"), r"unknown geometry 'huge'; the geometries are .*tiny"),
            (("digits", "--epochs", "1", "--passes", "1"), "give --epochs or --passes, not both"),
            (("digits", "--epochs", "0"), "--epochs must be more than 0, not 0"),
            (("digits", "--resolutions", "8,x"), r"--resolutions takes numbers with commas.* not '8,x'"),
            (("digits", "--resolutions", "8,6"), "resolutions must be distinct, rising"),
            (("digits", "--device", "abacus"), "the device 'abacus' cannot be trained on here"),
            (("digits", "--device", "5M"), "a network's limit in million MACs is --max-macs 5"),
            ((), f"name a data set, a folder of images or an {FILES} file, or give --resume RUN"),
        ],
    )
    def test_what_cannot_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        trainonce("train", *arguments, "--width", "0.25").refused(says)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]

    @pytest.mark.parametrize(
        "arguments", [("--epochs", "-1"), ("--batch-size", "1"), ("--seed", "-1"), ("--width", "9"), ("--nonsense",)]
    )
    def test_options_out_of_range(self, arguments: tuple[str, ...]) -> None:
        result = trainonce("train", "digits", *arguments)
        assert result.code == 2
        assert "Traceback" not in result.err
        assert arguments[0] in result.err

    @pytest.mark.parametrize("number", ["nan", "inf", "1e400"])
    @pytest.mark.parametrize("option", ["--epochs", "--passes", "--width"])
    def test_numbers_that_are_none(self, tmp_path: Path, option: str, number: str) -> None:
        result = trainonce("train", "digits", option, number, "--dry-run", "--out", tmp_path / "run")
        assert result.code == 2, result.err
        assert "Traceback" not in result.err

    def test_a_seed_that_is_too_large(self, tmp_path: Path) -> None:
        result = trainonce("train", "digits", "--seed", str(2**64), "--dry-run", "--out", tmp_path / "run")
        assert result.code == 2
        assert "Traceback" not in result.err

    def test_a_run_that_is_there(self, trained: Path) -> None:
        before = same_files(trained)
        result = trainonce("train", "digits", "--epochs", "1", *SMALL, "--out", trained)
        result.refused(r"already holds a run; continue it with --resume or name another directory")
        assert same_files(trained) == before

    def test_which_is_noticed_before_images_are_read(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert trainonce("train", "digits", *SMALL, "--out", trained, "--dry-run").code == 0, "which writes nothing"
        monkeypatch.setattr("trainonce.pipeline.training.load_dataset", lambda *_: pytest.fail("it was read"))
        trainonce("train", "digits", *SMALL, "--out", trained).refused("already holds a run")

    def test_resuming_nothing(self, tmp_path: Path) -> None:
        trainonce("train", "--resume", tmp_path / "nothing").refused(r"nothing holds no run")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_one_class(self, tmp_path: Path) -> None:
        images = make_images(tmp_path / "pets", "cat")
        trainonce("train", images, "--out", tmp_path / "run").refused("class")
        assert not (tmp_path / "run").exists()

    def test_a_corrupt_image(self, tmp_path: Path) -> None:
        images = make_images(tmp_path / "pets", "cat", "dog")
        content = (images / "dog" / "3.png").read_bytes()
        (images / "dog" / "3.png").write_bytes(content[: len(content) // 2])
        trainonce("train", images, "--out", tmp_path / "run").refused(r"dog/3\.png")
        assert not (tmp_path / "run").exists()


class TestOthersRefuse:
    @pytest.mark.parametrize("command", ["evaluate", "extract", "draw"])
    def test_no_run(self, tmp_path: Path, command: str) -> None:
        trainonce(command, tmp_path / "nothing").refused("nothing holds no run")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["evaluate", "extract"])
    def test_not_yet_trained(self, trained: Path, tmp_path: Path, command: str) -> None:
        shutil.copy(trained / "run.json", tmp_path)
        trainonce(command, tmp_path).refused("has no trained weights yet: train it first")

    @pytest.mark.parametrize(
        ("buckets", "says"),
        [
            ("4,x", r"--buckets takes numbers with commas between, such as 4,6,8; not '4,x'"),
            ("-4", "must be positive numbers of million MACs"),
            ("nan", "must be positive numbers of million MACs"),
            ("inf", "must be positive numbers of million MACs"),
            ("4000", r"no subnet with 3999\.500 to 4000\.500 M MACs was found; the space has"),
        ],
    )
    def test_bad_buckets(self, trained: Path, buckets: str, says: str) -> None:
        trainonce("evaluate", trained, "--buckets", buckets).refused(says)

    @pytest.mark.parametrize(
        ("arch", "says"),
        [
            ("d9", r"architecture 'd9': part 1 is d9 where stage1.depth stands, which is d with 1, 2"),
            ("nonsense", r"architecture 'nonsense'"),
            ("d1.k3e3", r"architecture 'd1.k3e3' ends before stage2.depth"),
        ],
    )
    def test_bad_architectures(self, trained: Path, arch: str, says: str) -> None:
        trainonce("extract", trained, arch).refused(says)

    @pytest.mark.parametrize("budget", ["0", "0.001"])
    def test_no_subnet_fits(self, evaluated: Path, budget: str) -> None:
        trainonce("extract", evaluated, "--max-macs", budget).refused("no evaluated subnet fits the budget")

    @pytest.mark.parametrize(
        ("budget", "says"),
        [
            ("-3", r"takes a positive number, perhaps with a unit, such as 10M, not '-3'"),
            ("2500000", r"is in millions where no unit is given: .* Say 2.5M for 2,500,000"),
        ],
    )
    def test_budgets_that_mean_something_else(self, evaluated: Path, budget: str, says: str) -> None:
        trainonce("extract", evaluated, f"--max-macs={budget}").refused(says)

    def test_nothing_evaluated(self, trained: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        (run / "population.jsonl").unlink(missing_ok=True)
        count_file(run / "population.jsonl").unlink(missing_ok=True)
        trainonce("extract", run, "--max-macs", "1").refused("no subnet has been evaluated yet")

    def test_never_replaces_what_is_no_subnet(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "notes").write_text("irreplaceable")
        trainonce("extract", trained, "smallest", "--out", tmp_path).refused("is not a subnet: name another")
        assert (tmp_path / "notes").read_text() == "irreplaceable"

    def test_options_that_would_be_left_unused(self, evaluated: Path) -> None:
        trainonce("train", "--resume", evaluated, "--epochs", "9").refused(
            "--epochs cannot be given together with --resume"
        )
        trainonce("extract", evaluated, "largest", "--max-macs", "1").refused(
            "--max-macs cannot be given together with an architecture"
        )
        trainonce("evaluate", evaluated, "--buckets", "1,1.2").refused("overlap")

    def test_a_run_whose_checkpoints_are_gone(self, evaluated: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(evaluated, tmp_path / "run"))
        shutil.rmtree(run / "checkpoints")
        trainonce("train", "--resume", run).refused("its checkpoints are gone")

    def test_workers_that_cannot_be(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainonce("evaluate", trained, "--cluster", "cloud9").refused("--cluster takes local, ray, or .*; not 'cloud9'")
        trainonce("evaluate", trained, "--cluster", "ray", "--dry-run").refused("not known beforehand: name --workers")
        monkeypatch.setattr(machine, "ranks_in", lambda *_: Ranks(rank=0, size=2))
        trainonce("evaluate", trained, "--workers", "2").refused("under torchrun the ranks do the work")
        monkeypatch.undo()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "two")
        trainonce("evaluate", trained).refused("WORLD_SIZE is 'two', not a number")

    def test_images_that_are_not_the_runs(self, evaluated: Path, tmp_path: Path) -> None:
        trainonce("evaluate", evaluated, "--data", tmp_path / "nowhere").refused("is not a data set")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda run: (run / "run.json").write_text("{"),
            lambda run: (run / "population.jsonl").write_text("{}\n"),
            lambda run: [p.unlink() for p in (run / "checkpoints").glob("*/weights.safetensors")],
        ],
        ids=["run.json", "population.jsonl", "checkpoints"],
    )
    @pytest.mark.filterwarnings("ignore:the checkpoint")
    def test_damaged_runs(self, evaluated: Path, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
        run = Path(shutil.copytree(evaluated, tmp_path / "run"))
        damage(run)
        trainonce("extract", run, "--max-macs", "1").refused(r"(run\.json|population\.jsonl|step-00000[04])")


class TestPlannedWorkers:
    @pytest.fixture(autouse=True)
    def two_threads(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Two CPU threads, and a clock that only `working` moves."""
        self.now = 0.0
        self.threads: list[int] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        yield
        assert torch.get_num_threads() == 2
        torch.set_num_threads(before)

    def plan(self, count: int, workers: int | None = None, *, cluster: str = "local", device: str = "cpu") -> Any:
        """A subnet takes 2 s with two threads, 3 s with one."""

        def working() -> None:
            self.threads.append(torch.get_num_threads())
            self.now += 2.0 if torch.get_num_threads() == 2 else 3.0

        return machine.planned_workers(working, count, workers, cluster=cluster, device=device)

    def test_of_itself(self) -> None:
        start = machine.START_UP_S
        assert self.plan(0) == (1, 0.0)
        assert self.plan(14) == (1, 28.0)
        assert self.plan(15) == (2, start + 8 * 3.0)
        assert self.plan(15, device="cuda") == (1, 30.0)
        assert self.threads == [2, 2, 1, 2]

    def test_as_asked(self) -> None:
        start = machine.START_UP_S
        assert self.plan(100, 1) == (1, 200.0)
        assert self.plan(100, 4) == (4, start + 25 * 3.0)
        assert self.plan(3, 4) == (3, start + 3.0)
        assert self.plan(100, 50, cluster="ray") == (50, start + 2 * 3.0)


def test_a_refusing_disk_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = trainonce("train", "digits", "--epochs", "1", *SMALL, "--out", tmp_path / "file" / "run")
    result.refused("the system refused", code=1)


def test_precision_is_recorded_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, bool]] = []

    def note(*arguments: Any, settings: Any, **named: Any) -> bool:
        used.append((settings.precision, settings.cuda_graphs))
        return train_supernet(*arguments, settings=settings, **named)

    monkeypatch.setattr("trainonce.pipeline.training.train_supernet", note)
    new, again = ("train", "digits", "--epochs", "0.2", "--out", tmp_path / "run", *SMALL), ("train", "--device", "cpu")
    trainonce(*new, "--precision", "float16").refused("precision.*'float32' or 'bfloat16'")
    assert trainonce(*new, "--precision", "bfloat16", "--no-cuda-graphs").code == 0
    assert RunDirectory(tmp_path / "run").config().precision == "bfloat16"
    assert trainonce(*again, "--resume", tmp_path / "run").code == 0
    assert trainonce(*again, "--resume", tmp_path / "run", "--precision", "float32").code == 0
    assert used == [("bfloat16", False), ("bfloat16", True), ("float32", True)]
