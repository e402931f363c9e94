"""The engineer's page of one run: its networks, class by class, and commands; no word of arms."""

import html
import json
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import recall_score
from tests.support.command_line import trainonce

from trainonce import RunDirectory
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import Score
from trainonce.evaluation.per_class import by_class
from trainonce.records import read_document, to_json
from trainonce.report import build_page, read_groups, read_run
from trainonce.report.figures.classes import draw_confusion
from trainonce.report.loading import RunRecord
from trainonce.report.parts import Command
from trainonce.report.sections.networks import classes_section, networks_sections
from trainonce.report.taken import TakenOut
from trainonce.search.resources import quantity
from trainonce.subnets import read_subnet

SMALL = ("--width", "0.25", "--batch-size", "256", "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a population and two networks; one of them was exported, and fine-tuned from a third."""
    path = tmp_path_factory.mktemp("networks") / "run"
    for command in (
        ("train", "digits", "--recipe", "spos", "--epochs", "1", *SMALL, "--out", path),
        ("evaluate", path, "--per-bucket", "1", "--device", "cpu", "--workers", "1"),
        ("extract", path, "largest", "--test", "--out", path / "subnets" / "large", "--device", "cpu"),
        ("extract", path, "smallest", "--out", path / "subnets" / "raw", "--device", "cpu"),
        ("finetune", path / "subnets" / "raw", "--epochs", "1", "--test", "--out", path / "subnets" / "small"),
        ("export", path / "subnets" / "small", "--to", "onnx"),
    ):
        result = trainonce(*command)
        assert result.code == 0, result.err
    return path


def text_of(page: str) -> str:
    """What a reader of the page sees, without what scripts draw."""
    return html.unescape(re.sub("<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)))


def test_the_networks_come_first(run: Path) -> None:
    page = build_page(read_groups([run]))
    headings = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page)
    assert headings[:5] == ["Your networks", "Class by class", "Go on", "The laboratory", "The population in short"]
    described = {name: read_subnet(run / "subnets" / name)[1] for name in ("small", "large")}
    found = {name: (one.scores or {})["test"].score() for name, one in described.items()}
    text = text_of(page)
    for score in found.values():
        assert "{:.1f} ({:.1f} to {:.1f})".format(score.top1, *score.interval()) in text
    best = max(found, key=lambda name: found[name].top1)
    assert f"2 networks were taken out; the best, {best}, has {found[best].top1:.1f}% on 359 test images" in text
    assert f"trainonce export {run}/subnets/{best} --to onnx" in text
    assert "subnets/raw" not in text, "another took its place"


def test_one_run_has_no_arms(run: Path) -> None:
    text = text_of(build_page(read_groups([run])))
    assert "How sure: this is one training run" in text
    assert not re.findall(r".{30}\barms?\b.{30}", text, re.IGNORECASE)
    two = text_of(build_page([*read_groups([run, run])]))
    assert "Arms compared" in two, "where there are several runs there is something to compare"


def test_the_recall_of_the_page_is_that_of_the_predictions(run: Path) -> None:
    [large] = [one for one in read_run(RunDirectory(run)).taken if one.name == "large"]
    assert large.per_class is not None
    is_, taken_for = [], []
    for i, row in enumerate(large.per_class.confusion):
        for j, count in enumerate(row):
            is_ += [i] * count
            taken_for += [j] * count
    recall = 100 * recall_score(is_, taken_for, average=None, zero_division=0)
    page = build_page(read_groups([run]))
    rows = re.findall(r"<tr><td>(\d)</td>(.*?)</tr>", page)
    shown = {name: re.findall(r">([^<>]*)</td>", cells) for name, cells in rows}
    for number, value in enumerate(recall):
        assert float(shown[str(number)][2]) == pytest.approx(value, abs=0.051)


def test_what_was_measured_of_latency_is_shown(run: Path) -> None:
    small, large = read_run(RunDirectory(run)).taken
    assert (small.name, large.name) == ("small", "large")
    certificate = read_document(run / "subnets" / "small" / "export" / "onnx" / "certificate.json")[0]
    assert small.latency_ms == {"onnx, float32": certificate["latency_ms"]["exported"]}
    assert large.latency_ms == {}
    assert small.size == (run / "subnets" / "small" / "model.safetensors").stat().st_size


def test_a_run_of_which_nothing_was_taken_out_says_how(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "population.jsonl", "metrics.jsonl", "exposure.npz", "forgetting.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    text = text_of(build_page(read_groups([tmp_path])))
    assert "No network has been taken out of this run yet." in text
    best = max(RunDirectory(run).population(), key=lambda line: (float(line.top1), -line.macs))
    assert f"trainonce extract {tmp_path} {best.arch} --test" in text
    assert "Class by class" not in text


def limit_of(line: str) -> float | None:
    """The limit on MACs of a command, read as the command line reads it."""
    words = shlex.split(line)
    return quantity("macs", words[words.index("--max-macs") + 1]) if "--max-macs" in words else None


@pytest.mark.parametrize("larger", [1, 1_000, 100_000])
def test_the_commands_to_go_on_can_be_kept(run: Path, larger: int) -> None:
    """Whatever the size of the subnets: a limit that half of those scored keep."""
    found = read_run(RunDirectory(run))
    scores = [replace(one, macs=one.macs * larger) for one in found.scores["validate"]]
    smallest, median = min(one.macs for one in scores), statistics.median_high(one.macs for one in scores)

    def said(changed: RunRecord) -> dict[str, str]:
        rows = networks_sections(changed)[-1].tables[0].rows
        return {str(what): line.text for what, line in rows if isinstance(line, Command)}

    commands = said(replace(found, scores={"validate": scores}))
    for what in ("search under other limits", "take another network out"):
        limit = limit_of(commands[what])
        assert limit is not None
        assert smallest <= median <= limit <= 1.1 * median
    unscored = said(replace(found, scores={}, front=None))
    assert "search under other limits" not in unscored
    assert unscored["take another network out"] == f"trainonce extract {run} largest --test"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"per_class": {"split": "test", "recall": [3]}}, "per_class: the key 'confusion' is missing"),
        ({"recall": [1.0]}, "per_class: .*confusion, recall and precision are of different numbers of classes"),
        (
            {"worst": [{"row": 0, "file": None, "actual": 10, "taken_for": 0, "probability": 1, "of_actual": 0}]},
            "no class",
        ),
        ({"confusion": [[1]], "recall": [1.0], "precision": [1.0], "worst": []}, "it is of another number of classes"),
    ],
)
def test_a_damaged_description_is_refused(run: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    place = tmp_path / "subnets" / "one"
    place.mkdir(parents=True)
    values = json.loads((run / "subnets" / "large" / "config.json").read_text())
    changed = changes if "per_class" in changes else {"per_class": {**values["per_class"], **changes}}
    (place / "config.json").write_bytes(to_json({**values, **changed}))
    with pytest.raises(UserError, match=rf"config.json, .*{says}"):
        read_run(RunDirectory(tmp_path))


def taken_out(labels: torch.Tensor, guess: torch.Tensor, names: Sequence[str]) -> TakenOut:
    """A network that takes the test images of these labels for these classes."""
    return TakenOut(
        path=Path("it"),
        name="it",
        arch="a",
        macs=1,
        params=1,
        size=None,
        scores={"test": Score(top1=95.0, loss=1.0, images=len(labels))},
        classes=tuple(names),
        per_class=by_class(torch.eye(len(names))[guess] * 9, labels),
        split="test",
        latency_ms={},
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "it recognises all test images."),
        ({0: 1}, "it finds cat least: 99.7% of its test images; the others it takes most often for dog."),
        (
            {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3},
            "it finds cat least: 97.7% of its test images; the others it takes most often for dog.",
        ),
        ({300 + i: 0 for i in range(299)}, "it finds dog least: 0.333% of its test images; "),
    ],
    ids=["none", "one of 300", "three of seven for dog", "one of 300 found"],
)
def test_the_class_found_least_is_said_as_its_images_are(wrong: dict[int, int], says: str) -> None:
    """300 images of each of four classes, in their order."""
    labels = torch.arange(4).repeat_interleave(300)
    guess = labels.clone()
    for row, taken_for in wrong.items():
        guess[row] = taken_for
    names = ("cat", "dog", "emu", "fox")
    one = taken_out(labels, guess, names)
    assert classes_section([one]).figures[0].title.startswith(says)
    assert one.per_class is not None
    least = min(range(4), key=lambda number: int((guess[labels == number] == number).sum()))
    shown = re.search(r"least: ([0-9.]+%)", says)
    said = f"Found least: {names[least]} {shown[1]}" if shown else "All images are recognised"
    assert one.per_class.sentences(names)[0] == said, "by the same rule"


def test_of_many_classes_the_pairs_confused_most_are_listed() -> None:
    labels, names = torch.arange(40).repeat_interleave(3), tuple(f"c{i:02d}" for i in range(40))
    guess = labels.clone()
    guess[:3], guess[7] = 39, 5
    section = classes_section([taken_out(labels, guess, names)])
    assert section.text == ["it finds c00 least: 0% of its test images; the others it takes most often for c39."]
    [pairs] = [table for table in section.tables if "taken for" in table.columns and "image" not in table.columns]
    assert [list(row) for row in pairs.rows] == [["it", "c00", "c39", 3], ["it", "c02", "c05", 1]]
    assert sorted(str(row[1]) for row in section.tables[-1].rows) == ["row 0", "row 1", "row 2", "row 7"]
    assert not section.figures


@pytest.mark.parametrize("classes", [2, 20])
def test_a_cell_of_the_matrix_is_a_count(classes: int) -> None:
    confusion = [[i * classes + j for j in range(classes)] for i in range(classes)]
    names = [f"c{i:02d}" for i in range(classes)]
    [rows] = draw_confusion(confusion, names).to_dict()["datasets"].values()
    assert {(row["is"], row["for"]): row["images"] for row in rows} == {
        (names[i], names[j]): confusion[i][j] for i in range(classes) for j in range(classes) if confusion[i][j]
    }
    assert rows[-1]["share"] == pytest.approx(confusion[-1][-1] / sum(confusion[-1]))
