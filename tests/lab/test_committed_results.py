"""The committed studies: their conclusions follow from their results, and what their seeds can carry."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.lab.studies.summary import conclusion_of
from trainonce.records import read_json

RESULTS = Path(__file__).parents[2] / "docs" / "results"
pytestmark = pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")  # of before there were sums

STUDIES = sorted(path.parent for path in RESULTS.glob("*/study.json"))


def concluded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(conclusion_of(StudyDirectory(path)).to_json()))
    return found


def approximately(value: Any) -> Any:
    """The value with its numbers compared up to rounding, which differs between machines."""
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_committed_command_names_no_place_of_a_machine(path: Path) -> None:
    command = read_json(path / "study.json")["provenance"]["command"]
    assert not [word for word in command.split() if word.startswith(("/", "~"))]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_committed_conclusion_is_what_its_results_force(path: Path) -> None:
    assert concluded(path) == approximately(read_json(path / "conclusion.json"))


def test_three_seeds_of_rss_and_ps_on_cifar10_carry_an_interval_of_twelve_points() -> None:
    """Differences of 6.8, 11.5 and 7.9 points: 2.7 to 14.8 by Student, not the bootstrap's 6.8 to 11.4."""
    comparisons = concluded(RESULTS / "baseline-cifar10")["comparisons"]
    found = next(one for one in comparisons if one["names"] == ["rss", "ps"])
    assert (found["low"], found["high"]) == pytest.approx((2.66, 14.81), abs=0.01)
    assert (found["bootstrap_low"], found["bootstrap_high"]) == pytest.approx((6.8, 11.4), abs=0.1)


def test_no_effect_of_the_short_factorial_is_certain_once_six_are_tested() -> None:
    effects = concluded(RESULTS / "factorial-mnist")["tables"]["effects"]
    assert len(effects) == 6
    assert {row["verdict"] for row in effects} == {"cannot tell"}
    assert min(row["p_holm"] for row in effects) == pytest.approx(0.07, abs=0.005)
