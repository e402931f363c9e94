"""Matrices between probes and forgetting, against numbers worked out by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.lines import a_look

from trainonce.lab.measures.recorded import Interference
from trainonce.report.figures.interference import (
    draw_forgetting,
    draw_interference,
    forgetting_info,
    interference_info,
    mean_matrix,
    off_diagonal,
)
from trainonce.report.loading import Group, RunRecord
from trainonce.report.sections.probe import forgetting_section, interference_section

EMPTY = Group(
    title="",
    about="",
    question="",
    path=None,
    arms={},
    runs=[],
    missing=[],
    split="test",
    buckets_m=[],
    half_m=None,
    probes=[],
    conclusion=None,
)


def run(seed: int = 0, interference: dict[str, Any] | None = None, **fields: Any) -> RunRecord:
    plain: dict[str, Any] = {"path": Path("r"), "name": f"r{seed}", "arm": "a", "recipe": "rss", "passes": 1.0}
    plain |= {"data": "x", "model": {}, "provenance": {}}
    found = None if interference is None else Interference.read(interference, where="a test")
    return RunRecord(seed=seed, interference=found, **plain, **fields)


def measured(control: float = 0.5) -> dict[str, Any]:
    """Two probes, the larger one first; a step for the larger harms the smaller."""
    return {
        "probes": ["big", "small"],
        "macs": [8e6, 4e6],
        "gradient": {
            "agreement": [[1.0, 0.2], [0.2, 1.0]],
            "control": [control, 0.7],
            "conflict": [[0, 0.4], [0.4, 0]],
        },
        "transfer": {"r": [[1.0, 0.3], [-0.1, 1.0]]},
        "bn_shift": {"mean": [[0.0, None], [0.5, 0.0]]},
        "statistics": {"top1_supernet": [60.0, 50.0], "top1_recalibrated": [80.0, 70.0]},
    }


def test_probes_come_by_size_with_the_control_on_the_diagonal() -> None:
    [info] = interference_info([run(interference=measured(0.4)), run(1, interference=measured(0.6)), run(2)])
    assert (info.seeds, info.probes, info.labels) == (2, ["small", "big"], ["4.00 M", "8.00 M"])
    assert info.matrices["agreement"] == [[0.7, 0.2], [0.2, 0.5]]
    assert info.matrices["transfer"] == [[1.0, -0.1], [0.3, 1.0]]
    assert info.matrices["bn_shift"] == [[0.0, 0.5], [None, 0.0]]
    assert info.top1_supernet == [50, 60]
    for measure in info.matrices:
        draw_interference(info, measure).to_dict()


def test_a_measure_that_is_not_there_is_left_out() -> None:
    found = measured()
    del found["transfer"], found["statistics"]
    [info] = interference_info([run(interference=found)])
    assert set(info.matrices) == {"agreement", "conflict", "bn_shift"}
    assert info.top1_recalibrated == []


def test_errors_are_those_of_the_mean_over_runs() -> None:
    """Errors of 0.3 and 0.4 of two runs: 0.25 of their mean; and where one run has none there is none."""
    runs = []
    for seed, error in enumerate((0.3, 0.4)):
        found = measured()
        found["gradient"] |= {"agreement_error": [[0.0, error], [error, None]], "control_error": [error, 0.0]}
        runs.append(run(seed, interference=found))
    [info] = interference_info(runs)
    assert set(info.errors) == {"agreement"}
    assert info.errors["agreement"] == [[0.0, pytest.approx(0.25)], [pytest.approx(0.25), pytest.approx(0.25)]]
    [info] = interference_info([*runs, run(2, interference=measured())])
    assert info.errors == {}


def test_what_points_against_each_other_clearly_is_said() -> None:
    found = measured()
    found["gradient"] |= {"agreement": [[1.0, -0.2], [-0.3, 1.0]], "agreement_error": [[0.0, 0.05], [0.2, 0.0]]}
    [figure] = [
        f for f in interference_section(replace(EMPTY, runs=[run(interference=found)])).figures if f.key == "agreement"
    ]
    assert "2 of 2 pairs point against each other, 1 of them by more than two standard errors" in figure.title


def test_what_was_measured_along_the_training_is_a_table() -> None:
    """Of the steps that all runs have, with means over runs."""

    def at(step: int, mean: float) -> dict[str, Any]:
        one = measured() | {"step": step}
        one["gradient"] |= {"mean": mean, "mean_error": 0.3}
        one["transfer"] |= {"mean_r": -mean, "mean_r_error": None}
        return one

    along = [[at(10, 0.4), at(50, 0.3)], [at(10, 1.4)]]
    runs = [run(seed, at(100, 0.2 + seed) | {"along": points}) for seed, points in enumerate(along)]
    [info] = interference_info(runs)
    assert [(point.step, point.runs) for point in info.along] == [(10, 2), (100, 2)]
    assert info.along[0].agreement == pytest.approx(0.9)
    assert info.along[0].agreement_error == pytest.approx(0.3 / 2**0.5)
    assert info.along[0].transfer == pytest.approx(-0.9)
    assert info.along[0].transfer_error is None
    [figure] = [f for f in interference_section(replace(EMPTY, runs=runs)).figures if f.key == "agreement"]
    assert [row[1] for row in figure.tables[-1].rows] == [10, 100]
    assert interference_info([run(interference=at(100, 0.2))])[0].along == [], "the end alone"


def test_the_scale_is_centred_at_zero() -> None:
    [info] = interference_info([run(interference=measured())])
    cells = draw_interference(info, "transfer").to_dict()["layer"][0]
    assert cells["encoding"]["color"]["scale"]["domain"] == [-1.0, 1.0]


def test_means_leave_out_what_is_missing() -> None:
    assert mean_matrix([[[1.0, None], [2.0, 0.0]], [[3.0, None], [None, 1.0]]]) == [[2.0, None], [2.0, 0.5]]
    assert off_diagonal([[1.0, 2.0], [None, 4.0]]) == [2.0]


def test_probes_are_followed_one_by_one() -> None:
    looks = [(1, "b", 8e6, 50), (1, "a", 4e6, 40), (3, "a", 4e6, 45), (2, "a", 4e6, 48), (2, "b", 8e6, 60)]
    lines = [a_look(p, epoch=e, macs=m, top1=t) for e, p, m, t in looks]
    small, big = forgetting_info([run(forgetting=lines), run(1)])
    assert (small.probe, small.epochs, small.top1, small.forgotten) == ("a", [1, 2, 3], [40, 48, 45], [0, 0, 3])
    assert (big.label, big.forgotten) == ("8.00 M", [0, 0])
    for what in ("top1", "forgotten"):
        draw_forgetting([small, big], what).to_dict()


def title_of(*runs: RunRecord) -> str:
    group = replace(EMPTY, arms={"a": ""}, runs=list(runs))
    [title] = [figure.title for figure in interference_section(group).figures if figure.key == "transfer"]
    return title


def test_harm_is_what_is_beyond_noise() -> None:
    """One R of two is below 0, but in one of the two runs alone beyond noise."""
    assert title_of(*[run(seed, measured()) for seed in (0, 1)]).endswith(
        "whether any is harmed was not tested against noise."
    )
    runs = []
    for seed, harmful in enumerate(([[False, False], [False, False]], [[False, False], [True, False]])):
        found = measured()
        found["transfer"] |= {"harmful": harmful, "helpful": [[True, True], [False, True]]}
        runs.append(run(seed, found))
    [info] = interference_info(runs)
    assert (info.tested, info.harmed, info.helped) == (4, 1, 2)
    assert title_of(*runs) == (
        "A step for one subnet does another 10% of the good that the other's own step does; "
        "of 4 measured pairs 1 is harmed beyond noise and 2 helped."
    )


def test_different_probes_with_equal_macs_are_different_lines() -> None:
    """Seed 0 has the probes a and b, seed 1 has b alone: its line is b's and not the mean of a and b."""
    lines = [a_look(probe, top1=top1) for probe, top1 in (("a", 40), ("b", 60))]
    curves = forgetting_info([run(forgetting=lines), run(1, forgetting=[a_look("b", top1=62)])])
    assert [(c.seed, c.probe, c.label) for c in curves] == [
        (0, "a", "4.00 M a"),
        (0, "b", "4.00 M b"),
        (1, "b", "4.00 M b"),
    ]
    spec = draw_forgetting(curves).to_dict()
    [drawn] = spec["datasets"].values() if "datasets" in spec else [spec["layer"][0]["data"]["values"]]
    assert {row["probe"]: (row["y"], row["seeds"]) for row in drawn} == {"4.00 M a": (40, 1), "4.00 M b": (61, 2)}


def test_one_look_cannot_show_forgetting() -> None:
    """The arm b was looked at once: 0 of it is no finding, so it has no chart of what is forgotten."""
    looks = [a_look("x", epoch=e, top1=top1) for e, top1 in ((1, 50), (2, 48.5))]
    once = replace(run(forgetting=looks[:1]), arm="b")
    [figure] = forgetting_section(replace(EMPTY, runs=[run(forgetting=looks), once])).figures
    assert figure.title == (
        "The probes end 1.50 points below their best of 2 looks on average, 1.50 at most. "
        "One look cannot show forgetting: b."
    )
    assert [drawn.label for drawn in figure.pictures] == ["top-1, a", "forgotten, a", "top-1, b"]
    [alone] = forgetting_section(replace(EMPTY, runs=[once])).figures
    assert "looked at once" in alone.title
