"""Each study's conclusion on made-up lines whose truth is known."""

import json
import math
from dataclasses import replace

import pytest
from tests.support.study_results import (
    BASELINE,
    Lines,
    a_baseline,
    a_study,
    a_time,
    cells,
    conclude,
    doses,
    geometries,
    solo,
)

from trainonce.errors import UserError
from trainonce.lab.studies.built_in import STUDIES
from trainonce.lab.studies.conclusion import CANNOT_TELL


@pytest.mark.parametrize("name", [*STUDIES, "of my own"])
def test_no_results_cannot_tell(name: str) -> None:
    found = conclude(a_study(name), [], [])
    assert found.verdict == CANNOT_TELL
    assert found.sentence.startswith("Cannot tell: ")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("baseline", a_baseline()),
        ("dose", doses(-0.5, -4)),
        ("solo", solo(1)),
        ("factorial", cells({"sampler": 1.0})),
        ("geometry", geometries(3, 2)),
        ("my own", a_baseline()),
    ],
)
def test_conclusions_are_json_and_say_one_sentence(name: str, lines: Lines) -> None:
    found = conclude(BASELINE | {"name": name}, lines, [a_time("ps", 0, 10.0), a_time("rss", 0, 5.0)])
    assert json.loads(json.dumps(found.recorded().to_json(), allow_nan=False))["sentence"] == found.sentence
    assert found.sentence.endswith(".")
    assert ". " not in found.sentence
    assert all(len({tuple(row) for row in rows}) <= 1 for rows in found.tables.values()), "rows of equal keys"
    assert found == conclude(BASELINE | {"name": name}, lines, [a_time("ps", 0, 10.0), a_time("rss", 0, 5.0)])


def test_a_score_that_is_no_number_is_refused() -> None:
    lines = a_baseline()
    lines[0]["top1"] = math.nan
    with pytest.raises(UserError, match="its 'top1' is missing or of another kind"):
        conclude(BASELINE, lines, [])


def test_the_design_decides_and_not_the_name() -> None:
    """But where none is recorded, the name does."""
    lines, own = a_baseline(), BASELINE | {"name": "baseline", "design": None}
    assert conclude(own, lines, []) == replace(conclude(BASELINE | {"name": "mine"}, lines, []), study="baseline")
    assert conclude(BASELINE | {"design": "baseline"}, lines, []) == conclude(BASELINE, lines, [])
    assert conclude(own, lines, []).sentence != conclude(BASELINE, lines, []).sentence


def test_a_study_of_ones_own_compares_with_its_first_arm() -> None:
    found = conclude(BASELINE | {"name": "mine"}, a_baseline(), [])
    assert [comparison.names[1] for comparison in found.comparisons] == ["ps-released"] * 4
    assert found.verdict == "better"
