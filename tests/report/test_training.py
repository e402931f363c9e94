"""Training times and learning curves, against numbers worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.support.lines import a_stretch

from trainonce import RECIPES, MobileNetV3, RunDirectory, TrainSettings, train_supernet
from trainonce.data import DataSet
from trainonce.lab.statistics import student
from trainonce.records import count_file, read_lines, write_lines
from trainonce.report import read_groups
from trainonce.report.figures.charts import seed_mean
from trainonce.report.figures.training import curves_info, draw_curves, draw_times, spoken, times_info
from trainonce.report.loading import RunRecord
from trainonce.report.sections.all import sections_of
from trainonce.report.sections.training import times_section


def run(arm: str, seed: int = 0, **fields: Any) -> RunRecord:
    plain: dict[str, Any] = {"path": Path(arm), "name": f"{arm}{seed}", "recipe": arm, "passes": 16.0, "data": "x"}
    plain |= {"model": {}, "provenance": {}}
    return RunRecord(arm=arm, seed=seed, **plain, **fields)


@given(values=st.lists(st.integers(-1000, 1000).map(lambda tenths: tenths / 10), min_size=2, max_size=8, unique=True))
def test_an_interval_over_seeds_is_that_of_scipy_and_of_the_statistics(values: list[float]) -> None:
    found, own = seed_mean(values), student(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert own is not None
    assert (found.mean, found.low, found.high) == (own.estimate, own.low, own.high)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_what_has_no_mean_has_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        seed_mean(values)


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


def said_of_passes(path: Path) -> tuple[str, object]:
    """What the page of one run says of its training, and the passes in its table of what was run."""
    [group] = read_groups([path])
    [table] = sections_of(group)[-1].tables
    return times_section(group).text[0], table.rows[0][table.columns.index("passes")]


def test_a_training_that_was_stopped_made_the_passes_that_its_exposure_counts(
    make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path
) -> None:
    """Of 20 epochs of 4 steps 7 steps are made. exposure.npz counts the subnets of each step by their MACs."""
    recipe = RECIPES["quick"].scaled(20 / RECIPES["quick"].epochs).with_batch_size(8)
    run, asked = RunDirectory(tmp_path / "run"), iter([False] * 6)
    lines = TrainSettings(log_every=1)
    assert not train_supernet(
        make_net(), recipe, make_data(), run, settings=lines, should_stop=lambda: next(asked, True)
    )
    made = int(run.exposure().macs_passes.sum()) / 4
    assert (made, round(recipe.passes, 6)) == (7 / 4, 20)
    sentence, cell = said_of_passes(run.path)
    assert sentence.endswith(" s, 1.75 passes of subnets over the images.")
    assert cell == made


def test_steps_that_were_left_out_are_no_passes(synthetic: Any, tmp_path: Path) -> None:
    run = synthetic.run(tmp_path / "run", recipe="quick", scale=1.0)
    last = a_stretch(100, passes=12.0, seconds=30.0, left_out=60)
    write_lines(run.metrics_file, [last.to_json()])
    assert run.config().recipe.passes == pytest.approx(120)
    assert said_of_passes(run.path) == ("Training took 30 s, 12 passes of subnets over the images.", 12)


def test_the_passes_of_a_studys_runs_are_those_of_its_times(studies: Path) -> None:
    [group] = read_groups([studies / "baseline"])
    assert {line["passes"] for line in read_lines(studies / "baseline" / "times.jsonl")} == {16.0}
    assert {run.passes for run in group.runs} == {16.0}
    info = times_info(group.runs)
    assert info is not None
    assert {arm.passes for arm in info.arms} == {16.0}


def test_a_run_of_which_no_training_is_recorded_has_no_passes(synthetic: Any, tmp_path: Path) -> None:
    run = synthetic.run(tmp_path / "run")
    run.metrics_file.unlink()
    count_file(run.metrics_file).unlink()
    [group] = read_groups([run.path])
    assert group.runs[0].passes is None


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
