"""The error of predictions, by hand."""

import pytest

from trainonce.latency import PredictionError


def test_by_hand() -> None:
    error = PredictionError.of([1.0, 2.0, 3.0, 5.0], [1.0, 2.5, 2.4, 4.0])
    assert error.networks == 4
    assert error.mean == pytest.approx((0 + 0.2 + 0.25 + 0.25) / 4)
    assert error.worst == pytest.approx(0.25)
    assert error.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # two neighbours are exchanged: sum of d² is 2
    assert error.kendall == pytest.approx((5 - 1) / 6)  # one of six pairs is in the wrong order
    assert (error.fastest_ms, error.slowest_ms) == (1.0, 4.0)
    assert error.factor == pytest.approx(0.9)  # the middle of 0.8, 0.8, 1, 1.25


def test_a_machine_of_another_pace_is_all_factor() -> None:
    error = PredictionError.of([1.0, 2.0, 3.0], [3.0, 6.0, 9.0])
    assert error.mean == pytest.approx(2 / 3)
    assert error.factor == pytest.approx(3)
    assert error.scaled_mean == pytest.approx(0)
    assert error.spearman == error.kendall == 1


def test_equal_times_have_no_ranks() -> None:
    error = PredictionError.of([1.0, 1.0], [2.0, 3.0])
    assert error.spearman is None
    assert error.kendall is None
    assert "Spearman" not in str(error)


def test_in_words() -> None:
    assert str(PredictionError.of([1.0, 2.1], [1.0, 2.0])) == (
        "mean error 2.5%, worst 5.0%, Spearman 1.000, Kendall 1.000, over 2 networks of 1 to 2 ms"
    )
