"""Intervals, comparisons and rank agreement against closed forms, scipy, counting by hand and simulation."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trainonce.lab.statistics import (
    Interval,
    SeedComparison,
    against_zero,
    compare,
    corrected,
    hierarchical_bootstrap,
    holm,
    over_seeds,
    paired_t,
    points,
    probability,
    student,
    tau,
    tau_ceiling,
    tau_in_buckets,
    tau_interval,
    tost,
)

SMALL = st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 3))


def arms(mean: float, spread: float, seeds: int = 3, subnets: int = 40) -> dict[int, list[float]]:
    rng = np.random.default_rng(7)
    return {s: (mean + spread * (s - (seeds - 1) / 2) + rng.normal(0, 0.1, subnets)).tolist() for s in range(seeds)}


# intervals


def test_the_interval_of_many_seeds_is_that_of_the_normal_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(70, 2, size=(200, 1))
    found = hierarchical_bootstrap(values.tolist(), draws=20_000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_one_seed_gives_what_scipys_bootstrap_gives() -> None:
    values = np.random.default_rng(1).exponential(3, size=401)
    for statistic in (np.mean, np.median):
        ours = hierarchical_bootstrap([values.tolist()], statistic=statistic, draws=9999)
        theirs = stats.bootstrap(
            (values,), statistic, method="percentile", n_resamples=9999, rng=np.random.default_rng(2)
        ).confidence_interval
        assert ours.low == pytest.approx(theirs.low, abs=0.1)
        assert ours.high == pytest.approx(theirs.high, abs=0.1)


def test_both_levels_of_variance_are_in_the_interval() -> None:
    """With S seeds of n subnets the bootstrap's variance of the mean is (between + within / n) / S, of plug-in
    variances."""
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, size=(50, 1)) + rng.normal(0, 3, size=(50, 10))
    found = hierarchical_bootstrap(values.tolist(), draws=20_000, level=0.6827)
    variance = (values.mean(axis=1).var() + values.var(axis=1).mean() / 10) / 50
    assert (found.high - found.low) / 2 == pytest.approx(math.sqrt(variance), rel=0.05)


def test_seeds_of_unequal_size_count_alike() -> None:
    assert hierarchical_bootstrap([[1.0] * 100, [3.0]]).estimate == 2


def test_three_seeds_without_spread_inside_give_their_range_and_hold_the_truth_in_three_quarters() -> None:
    """All three draws are the lowest seed with probability 1/27 > 2.5%; a mean is below all three with 1/8."""
    rng = np.random.default_rng(4)
    held = 0
    for study in range(400):
        means = rng.normal(size=3)
        found = hierarchical_bootstrap([[mean] for mean in means], draws=4000, seed=study)
        assert (found.low, found.high) == pytest.approx((means.min(), means.max()))
        held += found.low <= 0 <= found.high
    assert held / 400 == pytest.approx(0.75, abs=0.08)


def test_thirty_seeds_hold_the_truth_nearly_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for study in range(300):
        values = rng.normal(size=(30, 1)) + rng.normal(size=(30, 5))
        found = hierarchical_bootstrap(values.tolist(), draws=400, seed=study)
        held += found.low <= 0 <= found.high
    assert held / 300 == pytest.approx(0.95, abs=0.04)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [[1.0, 2.0, 5.0], [0.0, 7.0]]
    assert hierarchical_bootstrap(values, seed=3) == hierarchical_bootstrap(values, seed=3)


def test_students_interval_is_scipys() -> None:
    values = [3.1, 4.7, 2.2, 5.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = student(values, level=0.9)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert student([3.1]) is None


def test_students_interval_of_three_seeds_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(9)
    held = sum(found.low <= 0 <= found.high for m in rng.normal(size=(2000, 3)) if (found := student(m)) is not None)
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_over_seeds_takes_the_statistic_of_each_seed_and_of_one_seed_its_subnets() -> None:
    values = [[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]]
    assert over_seeds(values, statistic=np.median) == student([2.0, 4.0])
    assert over_seeds(values[:1]) == hierarchical_bootstrap(values[:1])
    alone = over_seeds([[7.0]])
    assert alone.estimate == 7
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


# tests over seeds


def test_holm_by_hand() -> None:
    """The second is 4 · 0.02 = 0.08; the third, 3 · 0.025 = 0.075, may not be below it; the last ones reach 1."""
    assert holm([0.9, 0.02, 0.001, 0.025, 0.6]) == pytest.approx([1, 0.08, 0.005, 0.08, 1])
    assert holm([0.03]) == [0.03]


def test_holm_keeps_the_error_rate_of_a_family() -> None:
    """Six comparisons of nothing, dependent or not: any is called different in 5% of families, not in 26%."""
    rng = np.random.default_rng(10)
    uniform = rng.uniform(size=(4000, 6))
    assert np.mean([min(holm(p)) < 0.05 for p in uniform]) == pytest.approx(0.05, abs=0.012)
    assert np.mean(uniform.min(axis=1) < 0.05) > 0.2


def test_a_family_rests_on_its_corrected_p() -> None:
    """p = 0.03 alone is a difference, and beside two of nothing it is not; a family of one stays as it is."""
    zeros = {s: [0.0] for s in range(3)}
    real = compare({s: [value] for s, value in enumerate((1.0, 1.5, 2.0))}, zeros)
    nothing = compare({s: [value] for s, value in enumerate((-3.0, 3.0, 0.5))}, zeros)
    alone = compare({0: [3.0]}, {0: [0.0]})
    assert real.verdict == "better"
    found = corrected([nothing, real, nothing, alone])
    assert [one.verdict for one in found] == ["cannot tell"] * 4
    assert real.p_difference is not None
    assert found[1].p_holm == pytest.approx(3 * real.p_difference)
    assert "corrected p = " in found[1].sentence
    assert found[3] == alone
    assert corrected([real, alone]) == [real, alone]


@pytest.mark.parametrize(("p", "text"), [(0.0004, "p < 0.001"), (0.0251, "p = 0.025"), (0.691, "p = 0.69")])
def test_p_in_words(p: float, text: str) -> None:
    assert probability(p) == text


def test_the_paired_t_test_by_hand() -> None:
    """Student's sleep data (1908): extra hours of ten patients with one drug less the other; t = 4.0621, 9 df."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = compare({i: [x] for i, x in enumerate(first)}, {i: [x] for i, x in enumerate(second)}, names=("1", "2"))
    assert found.difference == pytest.approx(-1.58)
    assert found.p_difference == pytest.approx(0.002833, abs=1e-6)
    assert found.p_difference == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert found.verdict == "worse"


def test_equivalence_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt 3. The nearer bound is 0.3 away: t = 5.196 with
    2 df, of which the tail is known: (1 - t / sqrt(t² + 2)) / 2."""
    t = 0.3 / (0.1 / math.sqrt(3))
    assert tost([0.1, 0.2, 0.3], 0.5) == pytest.approx((1 - t / math.sqrt(t * t + 2)) / 2)


@given(st.lists(SMALL, min_size=2, max_size=8), st.floats(0.1, 3))
def test_equivalence_is_the_ninety_percent_interval_inside_the_margin(differences: list[float], margin: float) -> None:
    values = np.array(differences)
    if np.ptp(values) < 1e-6:
        return
    error = values.std(ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.95, len(values) - 1) * error
    inside = -margin < values.mean() - half and values.mean() + half < margin
    p = tost(differences, margin)
    assert p is not None
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == inside


def test_differences_without_any_spread() -> None:
    assert paired_t([0.0, 0.0, 0.0]) == 1
    assert paired_t([0.1, 0.1, 0.1]) == 0
    assert tost([0.0, 0.0], 0.5) == 0
    assert tost([2.0, 2.0], 0.5) == 1
    assert tost([0.5, 0.5], 0.5) == 0.5


def test_few_seeds_keep_their_error_rate() -> None:
    """Three seeds of nothing: better or worse in at most some 5%."""
    rng = np.random.default_rng(6)
    found = [
        compare({s: rng.normal(0, 1, 1).tolist() for s in range(3)}, {s: [0.0] for s in range(3)}, draws=200).verdict
        for _ in range(400)
    ]
    assert sum(verdict in ("better", "worse") for verdict in found) / 400 < 0.08


# verdicts


@pytest.mark.parametrize(
    ("mean", "spread", "verdict", "sentence"),
    [
        (3.2, 0.5, "better", "rss is 3.2 points better than ps (95% interval 2.0 to 4.4, 3 seeds, p = 0.008)"),
        (-3.2, 0.5, "worse", "rss is 3.2 points worse than ps (95% interval -4.4 to -2.0, 3 seeds, p = 0.008)"),
        (0.2, 0.05, "equivalent", "rss and ps are equivalent within 0.5 points: the difference is +0.20 points"),
        (0.2, 1.0, "cannot tell", "cannot tell whether rss and ps differ: the difference is +0.20 points"),
    ],
)
def test_verdicts_and_sentences(mean: float, spread: float, verdict: str, sentence: str) -> None:
    b = arms(50, 3)
    a = {s: [x + mean + spread * (s - 1) for x in values] for s, values in b.items()}
    found = compare(a, b, names=("rss", "ps"))
    assert found.verdict == verdict
    assert found.sentence.startswith(sentence)
    assert found.difference == pytest.approx(mean)


def test_a_real_difference_below_the_margin_is_equivalence() -> None:
    found = compare({0: [50.2], 1: [50.21], 2: [50.19]}, {0: [50.0], 1: [50.0], 2: [50.0]})
    assert found.p_difference is not None
    assert found.p_difference < 0.05
    assert found.verdict == "equivalent"


def test_one_seed_never_tells() -> None:
    found = compare({0: [90.0, 91.0]}, {0: [10.0, 11.0]})
    assert (found.verdict, found.p_difference, found.p_equivalence) == ("cannot tell", None, None)
    assert (found.low, found.high, found.sd, found.seeds_needed) == (None, None, None, None)
    assert found.sentence.endswith("(95% interval over subnets 80.0 to 80.0, 1 seed)")


def test_pairing_subnets_takes_their_own_differences_out() -> None:
    """Subnets far apart, each with the same difference: paired by position there is no spread left."""
    b = {s: list(np.random.default_rng(s).uniform(0, 100, 30)) for s in range(3)}
    a = {s: [x + 1 for x in values] for s, values in b.items()}
    found = compare(a, b)
    assert (found.bootstrap_low, found.bootstrap_high) == pytest.approx((1, 1))
    apart = compare(a, {s: values[:-1] for s, values in b.items()})
    assert apart.bootstrap_high - apart.bootstrap_low > 5


def test_medians_can_be_compared() -> None:
    a, b = {0: [1.0, 2.0, 90.0], 1: [1.0, 2.0, 90.0]}, {0: [0.0, 1.0, 2.0], 1: [0.0, 1.0, 2.0]}
    assert compare(a, b, statistic=np.median).difference == 1


SEEDS = st.integers(1, 4).flatmap(
    lambda seeds: st.lists(
        st.tuples(st.lists(SMALL, min_size=1, max_size=4), st.lists(SMALL, min_size=1, max_size=4)),
        min_size=seeds,
        max_size=seeds,
    )
)
OPPOSITE = {"better": "worse", "worse": "better", "equivalent": "equivalent", "cannot tell": "cannot tell"}


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_exchanging_the_two_exchanges_the_verdict(pairs: list[tuple[list[float], list[float]]]) -> None:
    a, b = dict(enumerate(x for x, _ in pairs)), dict(enumerate(y for _, y in pairs))
    one, other = compare(a, b, draws=100), compare(b, a, draws=100)
    assert other.difference == -one.difference
    assert (other.bootstrap_low, other.bootstrap_high) == (-one.bootstrap_high, -one.bootstrap_low)
    if one.low is not None and one.high is not None:
        assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert OPPOSITE[one.verdict] == other.verdict
    agrees(one)


def agrees(found: SeedComparison) -> None:
    """The verdict contradicts neither its interval nor its tests."""
    if found.verdict == "cannot tell":
        return
    assert found.low is not None
    assert found.high is not None
    assert found.sd is not None
    assert found.p_difference is not None
    assert found.p_equivalence is not None
    if found.verdict == "equivalent":
        half = stats.t.ppf(0.95, found.seeds - 1) * found.sd / math.sqrt(found.seeds)
        assert found.p_equivalence < 0.05
        assert -found.margin < found.difference - half <= found.difference + half < found.margin
    else:
        assert found.p_difference < 0.05
        assert (found.low > 0) == (found.difference > 0) == (found.verdict == "better")
        assert (found.high < 0) == (found.verdict == "worse")


def test_against_zero_is_comparing_with_zeros() -> None:
    values = {0: [1.0, 2.0], 1: [3.0, 1.0]}
    found, zeros = against_zero(values, name="it"), {0: [0.0, 0.0], 1: [0.0, 0.0]}
    assert found == compare(values, zeros, names=("it", "zero"))


@pytest.mark.parametrize(("value", "text"), [(3.21, "3.2"), (-0.004, "0.00"), (0.31, "0.31"), (-12.0, "-12.0")])
def test_points_in_words(value: float, text: str) -> None:
    assert points(value) == f"{text} points"


# rank agreement


def counted_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Tau-b by looking at every pair."""
    agree = ordered_a = ordered_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        sign_a, sign_b = (a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])
        agree += sign_a * sign_b
        ordered_a += sign_a != 0
        ordered_b += sign_b != 0
    below = math.sqrt(ordered_a * ordered_b)
    return agree / below if below else math.nan


TIED = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12)


@given(TIED)
def test_tau_counts_pairs(pairs: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    assert tau(a, b) == pytest.approx(counted_tau(a, b), nan_ok=True)
    assert tau(a, b) == pytest.approx(tau(b, a), nan_ok=True)


def test_tau_in_buckets_weighs_pairs_and_leaves_out_the_single_ones() -> None:
    a = [1.0, 2.0, 3.0, 10.0, 20.0, 99.0, 5.0]
    b = [1.0, 2.0, 3.0, 20.0, 10.0, 99.0, 5.0]
    buckets = ["low", "low", "low", "high", "high", "alone", None]
    assert tau_in_buckets(a, b, buckets) == pytest.approx((3 * 1 + 1 * -1) / 4)
    assert math.isnan(tau_in_buckets([1.0, 2.0], [1.0, 2.0], ["x", "y"]))


def test_a_bucket_without_an_order_does_not_count() -> None:
    assert tau_in_buckets([1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0], [0, 0, 1, 1]) == 1


def test_the_ceiling_is_the_mean_over_pairs_of_seeds() -> None:
    seeds = [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 2.0, 1.0]]
    taus = [counted_tau(a, b) for a, b in itertools.combinations(seeds, 2)]
    assert tau_ceiling(*seeds) == pytest.approx(np.mean(taus))
    assert tau_ceiling(*seeds, buckets=[0, 0, 1]) == pytest.approx((1 - 1 - 1) / 3)


def test_taus_interval_is_that_of_resampling_one_by_one() -> None:
    rng = np.random.default_rng(8)
    a = rng.integers(0, 12, 25).astype(float)
    b = a + rng.integers(-4, 5, 25)
    found = tau_interval([(a.tolist(), b.tolist())], draws=4000)
    one_by_one = []
    for _ in range(2000):
        rows = rng.integers(0, 25, 25)
        one_by_one.append(stats.kendalltau(a[rows], b[rows]).statistic)
    low, high = np.percentile(one_by_one, [2.5, 97.5])
    assert found.estimate == pytest.approx(counted_tau(a.tolist(), b.tolist()))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04)


def test_perfect_orders_in_buckets_have_no_interval() -> None:
    pair = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 1.0, 2.0])
    assert tau_interval([pair, pair], buckets=["a", "a", "b", "b"]) == Interval(1, 1, 1, 0.95)


# what is refused


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: compare({0: [1.0]}, {1: [1.0]}), r"a has seeds \[0\] and b has seeds \[1\]"),
        (lambda: compare({}, {}), "no seeds"),
        (lambda: compare({0: []}, {0: [1.0]}), "a, seed 0: expected a list of numbers"),
        (lambda: compare({0: [1.0]}, {0: [math.nan, 1.0]}), "b, seed 0: 1 of 2 values are not finite"),
        (lambda: compare({0: [1.0]}, {0: [1.0]}, margin=0), "margin"),
        (lambda: hierarchical_bootstrap([]), "at least one seed"),
        (lambda: hierarchical_bootstrap([[1.0], []]), "at least one in it"),
        (lambda: hierarchical_bootstrap([[1.0], [math.inf]]), "not finite"),
        (lambda: hierarchical_bootstrap([[1.0]], draws=3), "says nothing"),
        (lambda: hierarchical_bootstrap([[1.0]], level=95), "between 0 and 1"),
        (lambda: tau([1.0, 2.0], [1.0]), "equally long"),
        (lambda: tau([1.0, math.nan], [1.0, 2.0]), "not finite"),
        (lambda: tau_in_buckets([1.0, 2.0], [1.0, 2.0], [1]), "2 subnets need 2 buckets"),
        (lambda: tau_ceiling([1.0, 2.0]), "two seeds"),
        (lambda: tau_interval([]), "no pair"),
        (lambda: tau_interval([([1.0, 1.0], [1.0, 2.0])]), "no pair"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(act: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        act()
