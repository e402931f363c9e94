"""`trainonce conclude` as a person uses it, on a copy of a committed study."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trainonce.cli.app import app
from trainonce.errors import RunError, UserError
from trainonce.records import read_json

pytestmark = pytest.mark.filterwarnings(
    "ignore::trainonce.records.UncheckedWarning"
)  # committed before there were sums

COMMITTED = Path(__file__).parents[2] / "docs" / "results" / "baseline-cifar10"


def conclude(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["conclude", *map(str, words)])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study"
    path.mkdir()
    for name in ("study.json", "results.jsonl", "times.jsonl"):
        shutil.copy(COMMITTED / name, path)
    return path


def test_conclusions_are_made_from_the_results_that_are_there(study: Path) -> None:
    (study / "conclusion.json").write_text("{}")
    found = conclude(study)
    written = read_json(study / "conclusion.json")
    assert "rss is 8.7 points better than ps (95% interval 2.7 to 14.8, 3 seeds, p = 0.025)" in written["sentence"]
    assert " ".join(found.stdout.split()).endswith(written["sentence"])
    assert json.loads(conclude(study, "--json").stdout) == {str(study): written}


def test_the_spread_alone_gives_no_difference_away(study: Path) -> None:
    """Differences of 6.8, 11.5 and 7.9 points spread by 2.4."""
    found = conclude(study, "--spread", "--json")
    rows = json.loads(found.stdout)[str(study)]
    main = next(row for row in rows if row["names"] == ["rss", "ps"])
    assert main["sd"] == pytest.approx(2.45, abs=0.01)
    assert main["seeds_needed"] == 207
    assert set(main) == {"names", "seeds", "sd", "margin", "seeds_needed"}
    assert not (study / "conclusion.json").exists()
    shown = conclude(study, "--spread").stdout
    assert "2.45" in shown
    assert "8.7" not in shown


@pytest.mark.parametrize("option", [(), ("--spread",)])
def test_a_damaged_study_keeps_no_other_from_its_conclusion(study: Path, tmp_path: Path, option: tuple[str]) -> None:
    shutil.copytree(study, tmp_path / "damaged")
    (tmp_path / "damaged" / "results.jsonl").write_text("nonsense\n")
    found = conclude(tmp_path / "damaged", study, "--json", *option)
    assert isinstance(found.exception, RunError)
    assert str(found.exception) == "1 of 2 studies could not be concluded"
    assert f"{tmp_path / 'damaged'} failed: " in found.stderr
    assert list(json.loads(found.stdout)) == [str(study)]
    assert isinstance(conclude(tmp_path / "damaged").exception, UserError), "a lone one says it itself"


def test_a_directory_without_a_study_is_refused(study: Path, tmp_path: Path) -> None:
    """Before any other is concluded."""
    found = conclude(study, tmp_path)
    assert isinstance(found.exception, UserError)
    assert "holds no study" in str(found.exception)
    assert not (study / "conclusion.json").exists()
