"""Training times and learning curves, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.lines import a_stretch

from trainonce.report.figures.charts import seed_mean
from trainonce.report.figures.training import curves_info, draw_curves, draw_times, spoken, times_info
from trainonce.report.loading import RunRecord


def run(arm: str, seed: int = 0, **fields: Any) -> RunRecord:
    plain: dict[str, Any] = {"path": Path(arm), "name": f"{arm}{seed}", "recipe": arm, "passes": 16.0, "data": "x"}
    plain |= {"model": {}, "provenance": {}}
    return RunRecord(arm=arm, seed=seed, **plain, **fields)


def test_an_interval_over_seeds_is_students() -> None:
    """1, 2, 3: mean 2, s 1, and t(0.975, 2) = 4.3027 over the root of 3."""
    found = seed_mean([1, 2, 3])
    assert (found.mean, found.seeds) == (2, 3)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert seed_mean([5]).low is None


def test_times_are_means_and_factors_against_the_slowest() -> None:
    runs = [run("ps", train_seconds=100.0, beside=2), run("ps", 1, train_seconds=140.0), run("rss", train_seconds=60.0)]
    info = times_info([*runs, run("unknown")])
    assert info is not None
    assert (info.slowest, info.beside) == ("ps", [2])
    assert [(arm.arm, arm.seconds.mean, arm.times_less) for arm in info.arms] == [("ps", 120, 1), ("rss", 60, 2)]
    assert "60 s, 2.00x less" in str(draw_times(info).to_dict())


def test_times_that_nobody_recorded_are_none() -> None:
    assert times_info([run("ps")]) is None


@pytest.mark.parametrize(("seconds", "says"), [(42, "42 s"), (600, "10 min"), (16452, "4.57 h")])
def test_times_as_a_label_has_them(seconds: float, says: str) -> None:
    assert spoken(seconds) == says


def test_curves_are_thinned_to_means() -> None:
    """300 lines become 150 points, each the mean of two: loss 0.5, 2.5, 4.5, …"""
    metrics = [a_stretch(i, loss=i, top1=2 * i, passes=i / 10, seconds=i) for i in range(300)]
    info = curves_info([run("rss", metrics=metrics), run("ps")])
    assert info is not None
    [curve] = info.curves
    assert curve.loss[:3] == [0.5, 2.5, 4.5]
    assert curve.top1[-1] == 597
    assert curve.seconds == curve.loss
    for quantity, against in (("loss", "passes"), ("top1", "seconds")):
        draw_curves(info, quantity, against).to_dict()  # type: ignore[arg-type]


def test_curves_without_seconds_have_none() -> None:
    metrics = [a_stretch(1)]
    info = curves_info([run("rss", metrics=metrics)])
    assert info is not None
    assert info.curves[0].seconds is None
    assert curves_info([run("rss")]) is None
