"""How many seeds equivalence takes: against simulated studies, and against the numbers in docs/statistics.md."""

import numpy as np
import pytest
from scipy import stats

from trainonce.lab.power import equivalence_power, seeds_needed


@pytest.mark.parametrize(("sd", "seeds"), [(0.2, 4), (0.3, 5), (0.4, 8), (0.5, 11), (0.8, 24)])
def test_seeds_for_half_a_point(sd: float, seeds: int) -> None:
    assert seeds_needed(sd, 0.5) == seeds
    assert equivalence_power(seeds - 1, sd, 0.5) < 0.8 <= equivalence_power(seeds, sd, 0.5)


@pytest.mark.parametrize(("sd", "seeds"), [(0.3, 3), (0.3, 5), (0.5, 8), (0.8, 24)])
def test_power_is_the_share_of_simulated_studies_that_find_equivalence(sd: float, seeds: int) -> None:
    """Found: the 90% interval of the mean lies within the margin."""
    studies = np.random.default_rng(seeds).normal(0, sd, size=(20_000, seeds))
    half = stats.t.ppf(0.95, seeds - 1) * studies.std(axis=1, ddof=1) / np.sqrt(seeds)
    found = np.abs(studies.mean(axis=1)) + half < 0.5
    assert equivalence_power(seeds, sd, 0.5) == pytest.approx(found.mean(), abs=0.012)


def test_only_the_spread_relative_to_the_margin_counts() -> None:
    assert seeds_needed(3.0, 5.0) == seeds_needed(0.3, 0.5)
    assert seeds_needed(0.0, 0.5) == 2


def test_seeds_grow_with_the_square_of_the_spread() -> None:
    """For many seeds t is normal: (1.645 + 1.282)² sd² / margin² of them."""
    assert seeds_needed(8.5, 0.5) == pytest.approx((1.6449 + 1.2816) ** 2 * 17**2, rel=0.005)


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="margin"):
        seeds_needed(0.3, 0)
