"""Exposure and selection, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from trainonce.report.exposure import draw_exposure, draw_selection, exposure_info, total_variation
from trainonce.report.loading import ExposureCounts, RunRecord


def counts(**changes: Any) -> ExposureCounts:
    """Four passes: two of depth 1, two of depth 2; the second block's kernel was 3 once and 5 once."""
    plain: dict[str, Any] = {
        "names": ["stage1.depth", "stage1.depth", "stage1.block2.kernel_size", "stage1.block2.kernel_size"],
        "values": [1, 2, 3, 5],
        "passes": [2, 2, 1, 1],
        "exposure": [0.4, 0.2, 0.2, 0.1],
        "lr_sum": 0.4,
        "macs_edges": [1e6, 2e6, 3e6],
        "macs_passes": [3, 1],
    }
    return ExposureCounts(**{**plain, **changes})


def run(exposure: ExposureCounts | None, seed: int = 0) -> RunRecord:
    plain: dict[str, Any] = {"path": Path("r"), "name": f"r{seed}", "arm": "a", "recipe": "rss", "passes": 1.0}
    plain |= {"data": "x", "fingerprint": "f", "model": {}, "provenance": {}}
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
    [arm] = exposure_info([run(counts()), run(counts(exposure=[0.4, 0.4, 0.4, 0.4]), 1)])
    assert [s.exposure for s in arm.shares] == pytest.approx([1.0, 0.75, 0.75, 0.625])
    assert arm.seeds == 2


def test_runs_that_differ_in_more_than_their_seed_are_left_out() -> None:
    assert exposure_info([run(counts()), run(counts())]) == []
    assert exposure_info([run(None)]) == []


def test_selection_is_the_distance_between_what_was_trained_and_what_is_evaluated() -> None:
    """Trained three quarters and one; evaluated one quarter and three (one below the range counts as at its end)."""
    lines = [{"macs": macs} for macs in (0.9e6, 2.1e6, 2.9e6, 3e6)]
    [arm] = exposure_info([run(counts())], {"a": lines})
    assert (arm.trained, arm.evaluated, arm.divergence) == ([0.75, 0.25], [0.25, 0.75], 0.5)
    draw_selection(arm).to_dict()


@pytest.mark.parametrize(
    ("a", "b", "apart"), [([1, 1], [2, 2], 0), ([5, 0], [0, 9], 1), ([1, 1, 2], [1, 2, 1], 0.25), ([0, 0], [0, 0], 0)]
)
def test_total_variation(a: list[float], b: list[float], apart: float) -> None:
    assert total_variation(a, b) == pytest.approx(apart)
