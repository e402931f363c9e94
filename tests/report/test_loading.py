"""Reading runs and studies: what is there, what is absent, and what is damaged."""

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from tests.support.lines import a_stretch

from trainonce.errors import UserError
from trainonce.records import UncheckedWarning, count_file, read_json, read_lines, to_json, write_lines
from trainonce.report.loading import read_groups
from trainonce.report.sections.all import sections_of
from trainonce.run.directory import RunDirectory


class Makes(Protocol):
    """What conftest.py's `Synthetic` does for these tests."""

    def run(self, path: Path, *, recipe: str = "rss", seed: int = 0) -> RunDirectory: ...
    def exposure(self, run: RunDirectory) -> None: ...
    def interference(self, run: RunDirectory, probes: Any) -> None: ...
    def probes(self, count: int) -> Any: ...


def test_a_run_of_which_little_was_recorded(synthetic: Makes, tmp_path: Path) -> None:
    synthetic.run(tmp_path / "run")
    [group] = read_groups([tmp_path / "run"])
    [run] = group.runs
    assert (run.arm, run.seed, run.exposure, run.interference, run.forgetting) == ("rss", 0, None, None, [])
    assert run.train_seconds == pytest.approx(2400)
    assert (group.split, run.has_weights) == ("validate", False)


def test_loose_runs_are_named_so_that_they_can_be_told_apart(synthetic: Makes, tmp_path: Path) -> None:
    synthetic.run(tmp_path / "a")
    synthetic.run(tmp_path / "b", seed=1)
    synthetic.run(tmp_path / "c", recipe="ps")
    synthetic.run(tmp_path / "d", recipe="ps")
    [group] = read_groups([tmp_path / name for name in "abcd"])
    assert list(group.arms) == ["rss", "ps (c)", "ps (d)"]


def test_a_study_is_its_plan_and_its_results(studies: Path) -> None:
    [group] = read_groups([studies / "baseline"])
    assert list(group.arms) == ["ps-released", "ps", "rss", "rss-short"]
    assert len(group.runs) == 8
    assert group.missing == []
    assert all(len(run.scores["test"]) == 36 for run in group.runs)
    assert group.runs[0].beside == 2
    assert group.conclusion is not None
    assert group.conclusion.verdict == "better"


def test_what_is_neither_run_nor_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run and no study"):
        read_groups([tmp_path])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.jsonl", json.dumps(a_stretch(1).to_json()) + '\n{"step": 2}\n', "line 2: its 'phase'"),
        ("forgetting.jsonl", '{"epoch": 1}\n', "line 1: its 'step' is missing"),
        ("forgetting.jsonl", "nonsense\n", "line 1 is not JSON"),
        ("interference.json", "[]", "where an object belongs"),
        ("interference.json", '{"probes": ["a"], "macs": [1, 2]}', "'probes' and 'macs'"),
        (
            "interference.json",
            '{"probes": ["a"], "macs": [1], "transfer": {"r": [[1, 2]]}}',
            r"interference\.json: its transfer\.r is not of 1 probes",
        ),
        (
            "interference.json",
            '{"probes": ["a"], "macs": [1], "transfer": {"r": [["x"]]}}',
            r"interference\.json: transfer: its 'r' is missing or of another kind",
        ),
        ("exposure.npz", "nonsense", "is not a whole npz"),
    ],
)
@pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")
def test_what_is_damaged_is_refused_by_name(
    synthetic: Makes, tmp_path: Path, file: str, content: str, says: str
) -> None:
    run = synthetic.run(tmp_path / "run")
    (run.path / file).write_text(content, encoding="utf-8")
    count_file(run.path / file).unlink(missing_ok=True)
    with pytest.raises(UserError, match=says) as refused:
        read_groups([run.path])
    assert file in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"passes": np.zeros(3, np.int64)}, "its 'passes' is of another shape"),
        ({"macs_edges": np.zeros(3)}, "its 'macs_edges' is of another shape"),
        ({"lr_sum": np.float64("nan")}, "not a finite number"),
    ],
)
def test_an_exposure_file_that_does_not_go_together(
    synthetic: Makes, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    run = synthetic.run(tmp_path / "run")
    synthetic.exposure(run)
    file = run.path / "exposure.npz"
    with np.load(file) as found:
        whole = dict(found)
    np.savez(file, **(whole | changes))
    with pytest.raises(UserError, match=says):
        read_groups([run.path])


def test_a_half_written_exposure_file(synthetic: Makes, tmp_path: Path) -> None:
    run = synthetic.run(tmp_path / "run")
    synthetic.exposure(run)
    file = run.path / "exposure.npz"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="is not a whole npz"):
        read_groups([run.path])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"runs": 3}, "'runs' is missing"),
        ({"runs": [{"name": "a"}]}, "runs 1: its 'arm'"),
        ({"evaluate": None}, "'evaluate' is missing"),
        ({"runs": [{"name": "../../x", "arm": "a", "seed": 0}]}, "a name becomes part of a path"),
        ({"runs": []}, "has no results yet"),
    ],
)
def test_a_study_that_does_not_hold_together(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    study = {"name": "x", "arms": [{"name": "a"}], "runs": [], "evaluate": {"split": "test"}}
    (tmp_path / "study.json").write_bytes(to_json(study | changes))
    with pytest.raises(UserError, match=says):
        read_groups([tmp_path])


def shortened(studies: Path, path: Path, seeds: set[int]) -> Path:
    """The synthetic baseline as it is while it runs: results of some seeds, a run of another begun, no conclusion."""
    whole = studies / "baseline"
    shutil.copytree(whole, path, ignore=shutil.ignore_patterns("conclusion.json", "ps-seed1", "rss-short-seed1"))
    for name in ("results.jsonl", "times.jsonl"):
        write_lines(path / name, [line for line in read_lines(whole / name) if line["seed"] in seeds])
    return path


def test_an_unfinished_study_is_concluded_from_what_there_is(studies: Path, tmp_path: Path) -> None:
    path = shortened(studies, tmp_path / "study", {0})
    [group] = read_groups([path])
    assert {run.name for run in group.runs} == {f"{arm}-seed0" for arm in ("ps-released", "ps", "rss", "rss-short")}
    assert len(group.missing) == 4, "runs that were begun count as missing"
    lines = read_lines(path / "results.jsonl")
    means = {arm: np.mean([line["top1"] for line in lines if line["arm"] == arm]) for arm in ("rss", "ps")}
    assert group.conclusion is not None
    [main] = [c for c in group.conclusion.comparisons if c.names == ["rss", "ps"]]
    assert main.difference == pytest.approx(means["rss"] - means["ps"])
    assert (main.low, main.high) == (None, None)
    assert main.verdict == "cannot tell", "one seed says nothing about how seeds differ"
    [answer] = [section for section in sections_of(group) if section.key == "answer"]
    assert answer.text[0] == group.conclusion.sentence
    assert "at equal passes" in answer.text[0].lower()
    assert any("4 of its 8 runs have no results yet" in text for text in answer.text)


def test_a_conclusion_that_is_not_whole_is_made_again(studies: Path, tmp_path: Path) -> None:
    path = shortened(studies, tmp_path / "study", {0, 1})
    (path / "conclusion.json").write_bytes(to_json({"sentence": "Half."}))
    [group] = read_groups([path])
    assert group.conclusion is not None
    assert group.conclusion.sentence != "Half."
    assert group.conclusion.comparisons


def test_a_conclusion_of_fewer_runs_is_made_again(studies: Path, tmp_path: Path) -> None:
    """`trainonce conclude` wrote it while the study ran, which has gone on and is not finished."""
    path = shortened(studies, tmp_path / "study", {0})
    [fresh] = read_groups([path])
    old = read_json(studies / "baseline" / "conclusion.json")
    (path / "conclusion.json").write_bytes(to_json(old))
    [group] = read_groups([path])
    assert group.conclusion == fresh.conclusion
    assert group.conclusion is not None
    assert group.conclusion.sentence != old["sentence"]


def test_a_study_none_of_whose_runs_has_finished_shows_their_training(studies: Path, tmp_path: Path) -> None:
    [group] = read_groups([shortened(studies, tmp_path / "study", set())])
    assert (len(group.runs), group.conclusion) == (6, None)


def test_a_study_whose_runs_directories_are_gone_has_its_results() -> None:
    """As one whose results alone were committed: docs/paper_schedule.md."""
    path = Path(__file__).parents[2] / "docs/results/paper-mnist"
    with pytest.warns(UncheckedWarning, match="has no sum"):
        [group] = read_groups([path])
    assert {(run.arm, run.seed) for run in group.runs} == {
        (arm, seed) for arm in ("rss", "rss-short", "ps") for seed in range(3)
    }
    by_arm = {run.arm: run for run in group.runs}
    assert {arm: run.passes for arm, run in by_arm.items()} == {"rss": 590, "rss-short": 180, "ps": 1170}
    assert {run.recipe for run in group.runs} == {"rss", "rss-short", "ps"}
    assert all(len(run.scores["test"]) == 60 and run.data == "mnist" for run in group.runs)
    assert len(group.missing) == 18
    assert {"The answer", "The population"} <= {section.heading for section in sections_of(group)}
