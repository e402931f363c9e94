"""Exposure and selection, against numbers worked out by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.lines import a_scored

from trainonce.report.figures.exposure import draw_exposure, draw_selection, exposure_info
from trainonce.report.loading import Group, RunRecord
from trainonce.report.sections.training import selection_section
from trainonce.run.exposure import ExposureTable

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


def counts(**changes: Any) -> ExposureTable:
    """Four passes: two of depth 1, two of depth 2; the second block's kernel was 3 once and 5 once."""
    plain: dict[str, Any] = {
        "names": np.array(["stage1.depth", "stage1.depth", "stage1.block2.kernel_size", "stage1.block2.kernel_size"]),
        "values": np.array([1, 2, 3, 5]),
        "passes": np.array([2, 2, 1, 1]),
        "exposure": np.array([0.4, 0.2, 0.2, 0.1]),
        "steps": 4,
        "lr_sum": 0.4,
        "macs_edges": np.array([1e6, 2e6, 3e6]),
        "macs_passes": np.array([3, 1]),
    }
    return ExposureTable(**{**plain, **changes})


def run(exposure: ExposureTable | None, seed: int = 0) -> RunRecord:
    plain: dict[str, Any] = {"path": Path("r"), "name": f"r{seed}", "arm": "a", "recipe": "rss", "passes": 1.0}
    plain |= {"data": "x", "model": {}, "provenance": {}}
    return RunRecord(seed=seed, exposure=exposure, **plain)


def test_shares_are_of_the_learning_rate_sum_and_of_the_passes() -> None:
    [arm] = exposure_info([run(counts())])
    found = [(s.place, s.value, s.exposure, s.choice) for s in arm.shares]
    assert found == [
        ("stage1", "d1", 1.0, 0.5),
        ("stage1", "d2", 0.5, 0.5),
        ("stage1.block2", "k3", 0.5, 0.25),
        ("stage1.block2", "k5", 0.25, 0.25),
    ]
    assert arm.evaluated is None
    draw_exposure(arm).to_dict()


def test_an_arm_is_the_mean_of_its_seeds() -> None:
    [arm] = exposure_info([run(counts()), run(counts(exposure=np.full(4, 0.4)), 1)])
    assert [s.exposure for s in arm.shares] == pytest.approx([1.0, 0.75, 0.75, 0.625])
    assert arm.seeds == 2


def test_runs_that_differ_in_more_than_their_seed_are_left_out() -> None:
    assert exposure_info([run(counts()), run(counts())]) == []
    assert exposure_info([run(None)]) == []


def test_selection_is_the_distance_between_what_was_trained_and_what_is_evaluated() -> None:
    """Trained three quarters and one; evaluated one quarter and three (one below the range counts as at its end)."""
    lines = [a_scored(macs=macs) for macs in (0.9e6, 2.1e6, 2.9e6, 3e6)]
    [arm] = exposure_info([run(counts())], {"a": lines})
    assert (arm.trained, arm.evaluated) == ([0.75, 0.25], [0.25, 0.75])
    assert arm.bias is not None
    assert arm.bias.total_variation == 0.5
    assert arm.bias.jensen_shannon == pytest.approx(1 - 0.811278, abs=1e-6), "1 bit less the entropy of a quarter"
    draw_selection(arm).to_dict()


def test_bins_are_joined_for_drawing_alone() -> None:
    """Trained and evaluated in neighbouring bins: one bar, and yet nothing in common."""
    table = counts(macs_edges=np.linspace(1e6, 2e6, 101), macs_passes=np.eye(100, dtype=np.int64)[0])
    [arm] = exposure_info([run(table)], {"a": [a_scored(macs=1.015e6)]})
    assert (len(arm.trained), arm.trained[0], arm.evaluated) == (25, 1, arm.trained)
    assert arm.bias is not None
    assert (arm.bias.total_variation, arm.bias.jensen_shannon) == (1, 1)
    section = selection_section(replace(EMPTY, runs=[run(table)]), {"a": [a_scored(macs=1.015e6)]})
    [figure] = section.figures
    assert figure.title == "Part of the training that lay at other MACs than the evaluation: 100%."
    assert figure.tables[0].rows == [["a", 1, 1, 1]]
    assert "100 equal bins over the space's range, joined into 25 bars" in figure.caption


def test_nothing_trained_has_no_bias() -> None:
    [arm] = exposure_info([run(counts(macs_passes=np.array([0, 0])))], {"a": [a_scored(macs=1e6)]})
    assert (arm.bias, arm.trained) == (None, [0, 0])
