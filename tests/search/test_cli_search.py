"""`trainonce search` and what `extract` makes of it: the story, and a sentence for every refusal."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.command_line import trainonce
from tests.support.latency_tables import table_with

from trainonce.data import load_dataset
from trainonce.latency import LatencyTable
from trainonce.latency.parts import representatives
from trainonce.models import MobileNetV3, MobileNetV3Settings, Supernet
from trainonce.nn.kinds import spec_of
from trainonce.recipes import RECIPES
from trainonce.records import count_file, read_json, read_lines, write_lines
from trainonce.run.directory import RunDirectory
from trainonce.subnets import read_subnet
from trainonce.training.loop import train_supernet

HERE = ("--device", "cpu", "--workers", "1")
OPTIONS = ("--calibration-images", "20", *HERE)
BRIEFLY = ("--scores", "4", "--no-control", "--no-predictor", "--json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("search") / "run")
    settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10, width_mult=0.25)
    recipe = RECIPES["spos"].with_batch_size(256).scaled(1 / RECIPES["spos"].epochs)
    train_supernet(MobileNetV3(settings), recipe, load_dataset("digits"), run)
    return run.path


@pytest.fixture(scope="module")
def thousands(trained: Path) -> int:
    """A budget in the middle, in thousand MACs."""
    net = RunDirectory(trained).build_supernet()
    low, high = (net.cost_of(arch).macs for arch in (net.space.smallest(), net.space.largest()))
    return (low + high) // 2000


@pytest.fixture(scope="module")
def searched(trained: Path, thousands: int) -> dict[str, Any]:
    """What a search under the budget printed, with the test score of the best."""
    code, out, err = trainonce(
        "search", trained, "--max-macs", f"{thousands}k", "--scores", "6", "--test", "--json", *OPTIONS
    )
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def timeless(printed: str) -> dict[str, Any]:
    """What a search printed, but for its command and time."""
    return {name: value for name, value in json.loads(printed).items() if name != "provenance"}


def table_of_all(net: Supernet, *, ms: float) -> LatencyTable:
    """A table in which every part of the supernet takes as long."""
    return table_with(dict.fromkeys(representatives(net), ms))


class TestStory:
    def test_front_json_is_what_the_scores_say(self, trained: Path, thousands: int, searched: dict[str, Any]) -> None:
        run = RunDirectory(trained)
        assert searched == read_json(run.front_file)
        assert (searched["search"]["evaluations"], searched["control"]["evaluations"]) == (6, 6)
        assert searched["limits"] == {"macs": thousands * 1e3}
        scores = {line.arch: line.top1 for line in run.searched() if line.split == "validate"}
        for side in ("search", "control"):
            front = searched[side]["front"]
            assert all(entry["top1"] == scores[entry["arch"]] for entry in front)
            assert all(entry["macs"] == entry["measures"]["macs"] <= thousands * 1e3 for entry in front)
            assert searched[side]["best"] == front[0]
            assert [e["macs"] for e in front] == sorted((e["macs"] for e in front), reverse=True)
        assert not run.population_file.exists()

    def test_to_take_is_the_one_of_least_loss(self, trained: Path, thousands: int, searched: dict[str, Any]) -> None:
        lines = [line for line in RunDirectory(trained).searched() if line.split == "validate"]
        assert all(line.macs <= thousands * 1e3 for line in lines)
        best = min(lines, key=lambda line: line.loss)
        assert searched["best"] == best.model_dump(include={"arch", "top1", "loss", "images"})

    def test_the_test_split_is_read_once_for_the_best_alone(self, trained: Path, searched: dict[str, Any]) -> None:
        lines = [line for line in RunDirectory(trained).searched() if line.split == "test"]
        assert [line.arch for line in lines] == [searched["best"]["arch"]]
        assert searched["test"] == lines[0].model_dump(include={"arch", "top1", "loss", "images"})
        assert searched["test"]["images"] == 359

    def test_again_it_makes_nothing_and_says_so(self, trained: Path, thousands: int, searched: dict[str, Any]) -> None:
        before = RunDirectory(trained).search_file.read_bytes()
        code, out, err = trainonce(
            "search", trained, "--max-macs", f"{thousands / 1000}", "--scores", "6", "--test", *OPTIONS
        )
        assert code == 0, err
        assert RunDirectory(trained).search_file.read_bytes() == before
        best = searched["search"]["best"]
        assert "Of 12 scores asked for, 0 were made now; 12 were there already." in err
        to_take = searched["best"]
        assert f"Next: trainonce extract {trained} {to_take['arch']}" in err
        told = f"{to_take['loss']:.3f}, with a top-1 of {to_take['top1']:.2f}%"
        assert told in " ".join(out.split())
        assert f"{best['top1']:.2f}" in out
        assert "Random search, with 6:" in out

    def test_extract_chooses_from_what_was_searched(
        self, trained: Path, thousands: int, searched: dict[str, Any]
    ) -> None:
        out = trained.parent / "subnet"
        code, _, err = trainonce("extract", trained, "--max-macs", f"{thousands}k", "--max-size", "50MB", "--out", out)
        assert code == 0, err
        network, described = read_subnet(out)
        description = described.to_json()
        lines = [line for line in RunDirectory(trained).searched() if line.split == "validate"]
        chosen = next(line for line in lines if line.arch == description["architecture"])
        assert chosen.loss == min(line.loss for line in lines if line.macs <= thousands * 1e3)
        assert chosen.arch == searched["best"]["arch"]
        assert description["scores"]["validate"]["top1"] == pytest.approx(chosen.top1)
        trainonce("extract", trained, "--max-size", "1kB").refused("no evaluated subnet fits the budget")
        assert spec_of(network).num_classes == 10

    def test_it_goes_on_as_it_began_whatever_is_evaluated_meanwhile(self, trained: Path, tmp_path: Path) -> None:
        """What `evaluate` records in between, with another calibration, neither renames the search nor counts."""
        run = RunDirectory(shutil.copytree(trained, tmp_path / "run"))
        run.search_file.unlink(missing_ok=True)
        count_file(run.search_file).unlink(missing_ok=True)
        assert trainonce("evaluate", run.path, "--per-bucket", "1", *OPTIONS).code == 0
        expected = trainonce("search", run.path, *BRIEFLY, *HERE)
        assert expected.code == 0, expected.err
        lines = read_lines(run.search_file)
        write_lines(run.search_file, lines[:2])
        other = ("--calibration-images", "30", *HERE)
        assert trainonce("evaluate", run.path, "--per-bucket", "1", *other).code == 0
        found = trainonce("search", run.path, *BRIEFLY, *HERE)
        assert found.code == 0, found.err
        assert timeless(found.out) == timeless(expected.out)
        assert json.loads(found.out)["calibration"]["calibration_images"] == 20
        assert read_lines(run.search_file) == lines

    def test_a_latency_table_counts_by_what_it_holds(self, trained: Path, tmp_path: Path) -> None:
        """Not by how its place is spelled; and not where latency is not asked for."""
        run = RunDirectory(shutil.copytree(trained, tmp_path / "run"))
        options: tuple[str, ...] = (*BRIEFLY, *OPTIONS)
        without = json.loads(trainonce("search", run.path, *options).out)
        path = run.latency / "phone.json"
        table_of_all(run.build_supernet(), ms=1.0).write(path)
        assert json.loads(trainonce("search", run.path, *options).out)["name"] == without["name"]

        timed = (*options, "--minimise", "latency")
        found = json.loads(trainonce("search", run.path, *timed, "--latency", "phone").out)
        assert found["latency_table"] == str(path)
        moved = path.rename(tmp_path / "elsewhere.json")
        again = json.loads(trainonce("search", run.path, *timed, "--latency", moved).out)
        assert again["name"] == found["name"]
        assert again["latency_table"] == str(moved)
        table_of_all(run.build_supernet(), ms=2.0).write(moved)
        other = json.loads(trainonce("search", run.path, *timed, "--latency", moved).out)
        assert other["name"] != found["name"]

    def test_the_documented_example(
        self, trained: Path, tmp_path: Path, made_up: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What docs/searching.md shows, on another run, with few and made-up scores."""
        run = RunDirectory(shutil.copytree(trained, tmp_path / "run"))
        run.search_file.unlink(missing_ok=True)
        count_file(run.search_file).unlink(missing_ok=True)
        text = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")
        example = text.split("```python\n")[1].split("```")[0]
        for shown, here in {
            '"runs/pets"': repr(str(run.path)),
            "scores=100": "scores=4, predictor=False, control=False",
            'Evaluator(run.load_data(), "validate")': "evaluator",
        }.items():
            assert example.count(shown) == 1
            example = example.replace(shown, here)
        evaluator = made_up()
        for most in ("8e6", "7e6", "7e6"):
            exec(example.replace("8e6", most), {"evaluator": evaluator})
        assert len(capsys.readouterr().out.splitlines()) == 3
        assert len({line.search for line in run.searched()}) == 2, "another limit is another search"

    def test_a_dry_run_writes_nothing(self, trained: Path, tmp_path: Path) -> None:
        run = RunDirectory(shutil.copytree(trained, tmp_path / "run"))
        for path in (run.search_file, run.front_file):
            path.unlink(missing_ok=True)
        count_file(run.search_file).unlink(missing_ok=True)
        code, out, err = trainonce("search", run.path, "--scores", "5", "--dry-run", "--json", *OPTIONS)
        assert code == 0, err
        assert json.loads(out)["seconds"] > 0
        assert not run.search_file.exists()
        assert not run.front_file.exists()

    def test_the_report_shows_it(self, trained: Path, thousands: int, searched: dict[str, Any], tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        code, _, err = trainonce("report", trained, "--out", page)
        assert code == 0, err
        text = page.read_text(encoding="utf-8")
        assert "<h3>Found by search</h3>" in text
        best = searched["search"]["best"]
        assert f"Within {thousands / 1000:.4g} M MACs, search found {best['top1']:.2f}% with 6 true scores" in text
        assert f"trainonce extract {trained} {best['arch']}" in text


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (
                ("--max-macs", "1k"),
                r"no subnet of this supernet has at most 0\.001 M MACs; the smallest has 0\.\d+ M MACs",
            ),
            (("--max-size", "1kB", "--max-params", "9"), r"has at most 9 M parameters and at most 0\.001 MB file"),
            (("--max-latency", "5ms"), "makes one; another is named with --latency"),
            (("--max-latency", "5ms", "--latency", "phone"), "there is no latency table phone"),
            (
                ("--max-memory", "little"),
                "--max-memory takes a positive number, perhaps with a unit, such as 2MB, not 'little'",
            ),
            (("--minimise", "macs,energy"), "no resource 'energy'"),
            (("--minimise", "macs,macs"), "names a resource twice"),
        ],
    )
    def test_what_cannot_be(self, trained: Path, options: tuple[str, ...], says: str) -> None:
        trainonce("search", trained, *options, "--scores", "2", *OPTIONS).refused(says)

    @pytest.mark.parametrize(
        "asked", [("search", "--max-latency", "5ms"), ("search", "--minimise", "latency"), ("extract",)]
    )
    def test_one_of_several_tables_is_to_be_named(self, trained: Path, tmp_path: Path, asked: tuple[str, ...]) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        (run / "latency").mkdir(exist_ok=True)
        for name in ("phone", "laptop"):
            (run / "latency" / f"{name}.json").write_text("{}")
        command, *options = asked
        said = trainonce(command, run, *(options or ("--max-latency", "5ms")))
        said.refused("/run/latency has laptop, phone: say which with --latency")

    def test_without_the_extra(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        trainonce("search", trained).refused(r"pip install 'trainonce\[search\]'")

    @pytest.mark.parametrize("name", ["population.jsonl", "search.jsonl"])
    def test_damaged_files(self, trained: Path, tmp_path: Path, name: str) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        write_lines(run / name, [{"arch": 5}])
        trainonce("search", run, "--scores", "2", *OPTIONS).refused(rf"{name}, line 1")
        trainonce("extract", run, "--max-macs", "9").refused(rf"{name}, line 1")

    def test_no_validate_images(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = load_dataset("digits")
        without = replace(data, validate=data.validate.take(np.zeros(0, np.int64)))
        monkeypatch.setattr(RunDirectory, "load_data", lambda *_, **__: without)
        trainonce("search", trained, *OPTIONS).refused("digits has no validate images")

    def test_nothing_trained(self, tmp_path: Path) -> None:
        trainonce("search", tmp_path).refused(r"holds no run")
