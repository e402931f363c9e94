"""Doses, gaps and effects, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from trainonce.report.loading import RunRecord
from trainonce.report.studies import (
    dose_info,
    draw_dose,
    draw_effects,
    draw_gaps,
    draw_seeds,
    effects_info,
    gap_info,
    seeds_info,
)


def run(seed: int, factors: dict[str, Any], **top1: float) -> RunRecord:
    lines = [{"arch": arch, "macs": 4e6, "top1": value, "probe": True} for arch, value in top1.items()]
    plain: dict[str, Any] = {"path": Path("r"), "name": "r", "arm": "a", "recipe": "rss", "passes": 1.0}
    plain |= {"data": "x", "fingerprint": "f", "model": {}, "provenance": {}}
    return RunRecord(seed=seed, factors=factors, scores={"test": lines}, **plain)


def test_doses_come_in_rising_order_each_seed_a_mean_over_probes() -> None:
    runs = [run(0, {"dose": "all"}, a=50), run(0, {"dose": 16}, a=55), run(0, {"dose": 2}, a=60)]
    runs += [run(0, {"dose": 2}, b=70), run(1, {"dose": 2}, a=61), run(1, {"dose": 2}, b=71)]
    doses = dose_info([*runs, run(0, {}, a=1)])
    assert [dose.dose for dose in doses] == ["2", "16", "all"]
    assert doses[0].by_seed == {0: 65, 1: 66}
    assert doses[0].mean.mean == 65.5
    assert doses[1].mean.low is None
    draw_dose(doses).to_dict()


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


def test_effects_are_the_conclusions_comparisons() -> None:
    one = {"names": ["rss", "ps"], "difference": 2.0, "low": 1.0, "high": 3.0, "verdict": "better", "margin": 0.5}
    [effect] = effects_info({"comparisons": [one, one | {"difference": None}]})
    assert (effect.label, effect.difference, effect.verdict) == ("rss − ps", 2.0, "better")
    draw_effects([effect]).to_dict()
    assert effects_info({}) == []


def test_seeds_are_means_over_subnets() -> None:
    [arm] = seeds_info({"a": [{"seed": 0, "top1": 50}, {"seed": 0, "top1": 60}, {"seed": 1, "top1": 57}]})
    assert (arm.by_seed, arm.mean.mean) == ({0: 55, 1: 57}, 56)
    draw_seeds([arm]).to_dict()
