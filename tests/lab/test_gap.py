"""The stand-alone gap on small tables."""

from tests.support.lines import a_result

from trainonce.lab.studies.gap import stand_alone_gaps
from trainonce.lab.studies.results import StudyResult


def line(arch: str, seed: int, top1: float) -> StudyResult:
    return a_result(arch=arch, seed=seed, top1=top1, macs=7)


INSIDE = [line("a", 0, 70.0), line("b", 0, 60.0), line("a", 1, 72.0)]
ALONE = [line("b", 0, 58.0), line("a", 1, 73.0), line("a", 0, 75.0), line("b", 2, 99.0)]
"""The last has no partner."""


def test_by_hand() -> None:
    gaps = stand_alone_gaps(ALONE, INSIDE)
    assert [(gap.arch, gap.seed, gap.points) for gap in gaps] == [("a", 0, 5.0), ("b", 0, -2.0), ("a", 1, 1.0)]
    assert (gaps[0].alone, gaps[0].inside, gaps[0].macs) == (75.0, 70.0, 7)


def test_of_lines_that_repeat_the_last_counts() -> None:
    assert stand_alone_gaps([*ALONE, line("a", 0, 71.0)], [*INSIDE, line("a", 0, 71.5)])[0].points == -0.5


def test_nothing_in_common() -> None:
    assert stand_alone_gaps(ALONE[:1], INSIDE[:1]) == []
