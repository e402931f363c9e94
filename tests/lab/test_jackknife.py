"""The jackknife against closed forms."""

import numpy as np
import pytest

from trainonce.lab.measures.jackknife import jackknife_error, means_without_one

VALUES = np.random.default_rng(0).normal(3, 2, size=(9, 2))


def test_of_a_mean_it_is_the_standard_error() -> None:
    assert jackknife_error(means_without_one(VALUES)) == pytest.approx(VALUES.std(axis=0, ddof=1) / 3)


def test_means_without_one() -> None:
    by_hand = [np.delete(VALUES, i, axis=0).mean(axis=0) for i in range(9)]
    assert means_without_one(VALUES) == pytest.approx(np.array(by_hand))


def test_of_a_square_it_is_twice_the_mean_times_its_error_as_there_are_more_values() -> None:
    """The delta method: the error of the square of a mean is |2 mean| times the error of the mean."""
    many = np.random.default_rng(1).normal(3, 2, size=4000)
    error = jackknife_error(means_without_one(many) ** 2)
    assert error == pytest.approx(2 * many.mean() * many.std(ddof=1) / np.sqrt(4000), rel=1e-3)


def test_one_value_has_none_and_a_figure_that_goes_missing_neither() -> None:
    assert np.isnan(jackknife_error(means_without_one(VALUES[:1]))).all()
    assert np.isnan(jackknife_error(np.array([1.0, np.nan, 2.0])))
