"""Doses, gaps and effects, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.lines import a_scored

from trainonce.lab.studies.results import RecordedConclusion
from trainonce.report.figures.studies import (
    dose_info,
    draw_dose,
    draw_effects,
    draw_gaps,
    draw_seeds,
    effects_info,
    gap_info,
    seeds_info,
)
from trainonce.report.loading import RunRecord


def run(seed: int, factors: dict[str, Any], **top1: float) -> RunRecord:
    lines = [a_scored(arch=arch, seed=seed, top1=value, probe=True) for arch, value in top1.items()]
    plain: dict[str, Any] = {"path": Path("r"), "name": "r", "arm": "a", "recipe": "rss", "passes": 1.0}
    plain |= {"data": "x", "model": {}, "provenance": {}}
    return RunRecord(seed=seed, factors=factors, scores={"test": lines}, **plain)


def test_doses_come_in_rising_order_each_seed_a_mean_over_probes() -> None:
    runs = [run(seed, {"dose": "all"}, a=50, b=60 + seed) for seed in (0, 1)]
    runs += [run(seed, {"dose": dose}, a=50, b=60 + dose) for dose in (16, 2) for seed in (0, 1)]
    doses = dose_info([*runs, run(0, {}, a=1)])
    assert [dose.dose for dose in doses] == ["2", "16", "all"]
    assert doses[0].by_seed == {0: 56, 1: 56}
    assert doses[2].by_seed == {0: 55, 1: 55.5}
    assert doses[2].mean.mean == 55.25
    assert doses[2].mean.low is not None
    draw_dose(doses).to_dict()


def test_the_probe_alone_with_double_turns_is_no_dose() -> None:
    """It shares with none, as the dose of 1 does, but has other turns than all doses."""
    runs = [run(0, {"dose": 1, "turns": "own"}, a=50), run(0, {"dose": 16, "turns": "own"}, a=40)]
    double = run(0, {"dose": 1, "turns": "double"}, a=70)
    assert dose_info([*runs, double]) == dose_info(runs)


def test_doses_of_a_half_done_study_are_compared_on_the_same_probes() -> None:
    """Sharing changes nothing, but the better probe b has no result yet with all, and seed 1 none with 2."""
    runs = [run(0, {"dose": 2}, a=60), run(0, {"dose": 2}, b=80), run(0, {"dose": "all"}, a=60)]
    runs += [run(1, {"dose": "all"}, a=40)]
    assert [(dose.dose, dose.by_seed) for dose in dose_info(runs)] == [("2", {0: 60}), ("all", {0: 60})]


def test_a_dose_that_shares_no_probe_with_the_others_is_left_out() -> None:
    runs = [run(0, {"dose": 2}, a=60, b=70), run(0, {"dose": 4}, a=61, b=71), run(1, {"dose": "all"}, a=40)]
    assert [(dose.dose, dose.by_seed) for dose in dose_info(runs)] == [("2", {0: 65}), ("4", {0: 66})]
    assert dose_info([]) == []


def test_gaps_are_alone_minus_inside_of_the_same_seed() -> None:
    inside = [run(seed, {"match": "supernet"}, a=50 + seed, b=60) for seed in (0, 1)]
    alone = [run(0, {"match": "epochs", "probe": 0}, a=53), run(1, {"match": "epochs", "probe": 0}, a=52)]
    alone += [run(0, {"match": "exposure", "probe": 1}, b=58), run(7, {"match": "exposure", "probe": 1}, b=99)]
    gaps = gap_info(inside + alone)
    assert [(gap.match, gap.probe, gap.by_seed) for gap in gaps] == [
        ("epochs", "a", {0: 3, 1: 1}),
        ("exposure", "b", {0: -2}),
    ]
    assert gaps[0].gap.mean == 2
    assert gaps[0].gap.low == pytest.approx(2 - 12.7062, abs=1e-3), "t(0.975, 1) with a standard error of 1"
    draw_gaps(gaps).to_dict()


def test_each_supernet_has_gaps_of_its_own() -> None:
    """The same probe loses 5 points inside the one and gains 2 inside the other."""
    inside = [run(0, {"match": "supernet", "strategy": name}, a=top1) for name, top1 in (("rss", 45), ("spos", 52))]
    gaps = gap_info([*inside, run(0, {"match": "epochs", "probe": 0}, a=50)])
    assert [(gap.against, gap.gap.mean) for gap in gaps] == [
        ("at equal epochs, inside rss", 5),
        ("at equal epochs, inside spos", -2),
    ]


def concluded(*comparisons: dict[str, Any]) -> RecordedConclusion:
    values = {"sentence": "So.", "verdict": "better", "comparisons": list(comparisons)}
    return RecordedConclusion.read(values, where="a test")


def test_effects_are_the_conclusions_comparisons() -> None:
    one = {"names": ["rss", "ps"], "difference": 2.0, "low": 1.0, "high": 3.0, "verdict": "better", "margin": 0.5}
    one_seed = one | {"names": ["a", "b"], "low": None, "high": None, "verdict": "cannot tell"}
    effect, alone = effects_info(concluded(one, one | {"difference": None}, one_seed))
    assert (effect.label, effect.difference, effect.verdict) == ("rss − ps", 2.0, "better")
    assert (alone.label, alone.low) == ("a − b", None), "a difference of one seed is shown without an interval"
    assert len(draw_effects([effect, alone]).to_dict()["layer"]) == len(draw_effects([alone]).to_dict()["layer"]) + 1
    assert effects_info(None) == []


def test_seeds_are_means_over_subnets() -> None:
    [arm] = seeds_info({"a": [a_scored(seed=seed, top1=top1) for seed, top1 in ((0, 50), (0, 60), (1, 57))]})
    assert (arm.by_seed, arm.mean.mean) == ({0: 55, 1: 57}, 56)
    draw_seeds([arm]).to_dict()


def test_probes_of_equal_macs_have_gaps_of_their_own() -> None:
    inside = run(0, {"match": "supernet"}, a=50, b=60)
    alone = [run(0, {"match": "epochs", "probe": 0}, a=53), run(0, {"match": "epochs", "probe": 1}, b=50)]
    gaps = gap_info([inside, *alone])
    assert [(gap.label, gap.gap.mean) for gap in gaps] == [("4.00 M a", 3), ("4.00 M b", -10)]
