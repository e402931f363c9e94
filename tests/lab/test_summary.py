"""What an arm came to, on lines whose means are known."""

import pytest
from tests.support.lines import a_finished, a_result

from trainonce.lab.studies.results import StudyResult
from trainonce.lab.studies.study import Arm
from trainonce.lab.studies.summary import arm_summaries

ARM = Arm(name="a")
TIMES = [a_finished(train_seconds=10.0, passes=2.0), a_finished(train_seconds=20.0, passes=4.0)]


def line(seed: int, arch: str, top1: float, *, probe: bool) -> StudyResult:
    return a_result(seed=seed, arch=arch, top1=top1, probe=probe)


POPULATION = [line(0, "x", 50, probe=False), line(0, "y", 60, probe=False), line(1, "x", 70, probe=False)]
PROBES = [line(0, "largest", 90, probe=True), line(1, "largest", 94, probe=True), line(1, "x", 96, probe=True)]


def test_probes_are_no_part_of_the_population() -> None:
    (found,) = arm_summaries([ARM, Arm(name="b")], [*PROBES, *POPULATION], TIMES)
    assert (found.seeds, found.subnets, found.lowest_seed, found.highest_seed) == (2, 2, 55, 70)
    assert found.top1 == pytest.approx((55 + 70) / 2)
    assert (found.train_seconds, found.passes) == (15, 3)


def test_probes_count_where_there_is_nothing_else() -> None:
    (found,) = arm_summaries([ARM], PROBES, TIMES)
    assert (found.subnets, found.lowest_seed, found.highest_seed) == (2, 90, 95)
