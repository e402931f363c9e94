"""What a few paired seeds can show: intervals, comparisons, equivalence, rank agreement. Formulas: docs/statistics.md.

Values are top-1 in percent, so differences are in points. Everything is a pure function; randomness comes from `seed`.
With three seeds, as most studies here have, keep in mind:

- Tests and intervals over seeds are Student's, with two degrees of freedom. A difference is seen only where it is 2.5
  times (4.30 / sqrt 3) the seeds' standard deviation or more; equivalence within 0.5 points needs seeds that agree to
  about 0.3. `trainonce.lab.power` says how many seeds it takes.
- Three seeds can be resampled in ten ways, so the bootstrap's percentile interval hardly leaves the range of the seeds
  and is too short: nominal 95% holds the truth in some 75% of studies where seeds make the noise. It is right over the
  subnets of a seed, and where there are many seeds.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from trainonce.lab.power import seeds_needed

Array: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[..., Any]
"""`np.mean`, `np.median`, or another that takes `axis`."""
Verdict: TypeAlias = Literal["better", "worse", "equivalent", "cannot tell"]
Buckets: TypeAlias = Sequence[float | str | None]
"""The bucket of each subnet; None for those in none."""
_Inner: TypeAlias = Callable[[np.random.Generator, int], Array]

ZERO_SPREAD = 1e-12
"""Relative to their size, differences nearer to each other than this count as equal."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it that holds the truth with probability `level`, as far as it goes."""

    estimate: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class SeedComparison:
    """How arm a differs from arm b, over paired seeds. Differences are a - b."""

    names: tuple[str, str]
    seeds: int
    difference: float
    """The mean over seeds."""
    low: float | None
    high: float | None
    """The 95% interval of Student's t over seeds; None for fewer than two seeds."""
    sd: float | None
    """The standard deviation of the seeds' differences, over S - 1; None for fewer than two seeds."""
    bootstrap_low: float
    bootstrap_high: float
    """The hierarchical bootstrap's 95% interval: over subnets where there is one seed; too short for a few seeds."""
    p_difference: float | None
    """Paired t test over seeds, two-sided; None for fewer than two seeds."""
    p_holm: float | None
    """The same corrected for all comparisons of its family (Holm), where it has one: then the verdict's."""
    p_equivalence: float | None
    """Two one-sided t tests over seeds: the larger of their p; None for fewer than two seeds."""
    margin: float
    seeds_needed: int | None
    """Seeds with which, at this `sd`, equivalence within the margin would show in 80% of studies of no difference."""
    verdict: Verdict
    sentence: str


def hierarchical_bootstrap(
    values_by_seed: Sequence[Sequence[float]],
    *,
    statistic: Statistic = np.mean,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean over seeds of a statistic over each seed's subnets, with its percentile interval.

    Each draw takes as many seeds as there are, with replacement, and inside each as many subnets as it has (Davison
    and Hinkley 1997, section 3.8). Seeds may have unequal numbers of subnets. One seed's interval knows nothing of how
    seeds differ; three seeds' is too short (see the module). Raises ValueError for no values or values not finite.
    """
    seeds = [checked(values, "a seed's values") for values in values_by_seed]
    if not seeds:
        raise ValueError("a bootstrap needs the values of at least one seed")
    means = _resample([_one_sample(values, statistic) for values in seeds], draws, seed)
    return _percentiles(float(np.mean([statistic(values, axis=-1) for values in seeds])), means, level)


def over_seeds(values_by_seed: Sequence[Sequence[float]], *, statistic: Statistic = np.mean) -> Interval:
    """The mean over seeds of a statistic over each seed's subnets, with Student's 95% interval over seeds.

    For one seed the bootstrap's over its subnets, and NaN where it has one subnet alone. Raises ValueError for no
    values or values not finite.
    """
    seeds = [checked(values, "a seed's values") for values in values_by_seed]
    if not seeds:
        raise ValueError("an interval needs the values of at least one seed")
    found = student(np.array([float(statistic(values, axis=-1)) for values in seeds]))
    if found is not None:
        return found
    if len(seeds[0]) > 1:
        return hierarchical_bootstrap(values_by_seed, statistic=statistic)
    return Interval(estimate=float(seeds[0][0]), low=math.nan, high=math.nan, level=0.95)


def student(values: Sequence[float] | Array, *, level: float = 0.95) -> Interval | None:
    """The mean of one value a seed and Student's interval of it, mean ± t · sd / √S; None for fewer than two."""
    found = checked(values, "values")
    if len(found) < 2:
        return None
    mean, half = float(found.mean()), _half_width(float(found.std(ddof=1)), len(found), level)
    return Interval(estimate=mean, low=mean - half, high=mean + half, level=level)


def _half_width(sd: float, seeds: int, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, seeds - 1)) * sd / math.sqrt(seeds)


def compare(
    a: Mapping[int, Sequence[float]],
    b: Mapping[int, Sequence[float]],
    *,
    margin: float = 0.5,
    alpha: float = 0.05,
    names: tuple[str, str] = ("a", "b"),
    statistic: Statistic = np.mean,
    draws: int = 2000,
    seed: int = 0,
) -> SeedComparison:
    """Compare the values that a and b have for the same seeds.

    A seed's subnets are paired by position where a and b have equally many, else resampled apart. The verdict:

    - "equivalent": both one-sided tests reject at `alpha`, which is that the 90% interval lies within the margin. The
      difference may be real, but is smaller than anyone cares about;
    - "better" or "worse": not equivalent, and the paired t test rejects at `alpha`, which is that the 95% interval
      excludes zero;
    - "cannot tell": anything else, and always with fewer than two seeds.

    Where several comparisons are made, `corrected` goes over them. Just one verdict holds, and exchanging a and b
    exchanges better and worse. Raises ValueError for unequal seeds, no values and values that are not finite.
    """
    if set(a) != set(b):
        raise ValueError(
            f"{names[0]} has seeds {sorted(a)} and {names[1]} has seeds {sorted(b)}: they must be the same"
        )
    if not a:
        raise ValueError(f"{names[0]} and {names[1]} have no seeds to compare")
    if not margin > 0:
        raise ValueError(f"the margin of equivalence must be above zero, not {margin}")
    pairs = [(checked(a[s], f"{names[0]}, seed {s}"), checked(b[s], f"{names[1]}, seed {s}")) for s in sorted(a)]
    differences = np.array([float(statistic(x, axis=-1) - statistic(y, axis=-1)) for x, y in pairs])
    drawn = _resample([_two_samples(x, y, statistic) for x, y in pairs], draws, seed)
    interval = _percentiles(float(differences.mean()), drawn, 0.95)
    p_difference, p_equivalence = paired_t(differences), tost(differences, margin)
    over = student(differences)
    sd = float(differences.std(ddof=1)) if over else None
    found = SeedComparison(
        names=names,
        seeds=len(pairs),
        difference=interval.estimate,
        low=over.low if over else None,
        high=over.high if over else None,
        sd=sd,
        bootstrap_low=interval.low,
        bootstrap_high=interval.high,
        p_difference=p_difference,
        p_holm=None,
        p_equivalence=p_equivalence,
        margin=margin,
        seeds_needed=None if sd is None else seeds_needed(sd, margin),
        verdict="cannot tell",
        sentence="",
    )
    return _judged(found, alpha)


def corrected(family: Sequence[SeedComparison], *, alpha: float = 0.05) -> list[SeedComparison]:
    """The comparisons of one family with their p corrected for how many they are, and verdicts by the corrected p.

    By Holm's method, which holds however they depend on each other. A family of one stays as it is, and so do
    comparisons without a p. Tests of equivalence are not corrected. Sentences are the usual ones.
    """
    tested = [found.p_difference for found in family if found.p_difference is not None]
    if len(tested) < 2:
        return list(family)
    adjusted = iter(holm(tested))
    return [
        found if found.p_difference is None else _judged(replace(found, p_holm=next(adjusted)), alpha)
        for found in family
    ]


def holm(p: Sequence[float]) -> list[float]:
    """The p values corrected so that any is below alpha by chance in alpha of all families, in their order.

    The k-th smallest of m is multiplied by m - k + 1, is at least the one before it and at most 1 (Holm 1979).
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(steps, 1.0)
    return [float(value) for value in found]


def against_zero(
    values: Mapping[int, Sequence[float]], *, name: str, margin: float = 0.5, alpha: float = 0.05, draws: int = 2000
) -> SeedComparison:
    """Compare what is a difference already, one for each seed and subnet, with zero: `compare` with zeros as b."""
    zeros = {seed: np.zeros(len(found)).tolist() for seed, found in values.items()}
    return compare(values, zeros, margin=margin, alpha=alpha, names=(name, "zero"), draws=draws)


def paired_t(differences: Sequence[float] | Array) -> float | None:
    """The two-sided p that differences, one a seed, have mean zero; None for fewer than two."""
    return _t_test(checked(differences, "differences"), 0.0, "two-sided")


def tost(differences: Sequence[float] | Array, margin: float) -> float | None:
    """The p of two one-sided t tests that the mean difference is outside ±margin; None for fewer than two differences.

    Below 0.05 exactly where the 90% t interval of the mean lies within the margin (Schuirmann 1987).
    """
    values = checked(differences, "differences")
    above, below = _t_test(values, -margin, "greater"), _t_test(values, margin, "less")
    return None if above is None or below is None else max(above, below)


def tau(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Kendall's tau-b between two orders of the same subnets, -1 to 1; NaN where either has no order at all."""
    x, y = _alike(a, b)
    return float(stats.kendalltau(x, y, variant="b").statistic)


def tau_in_buckets(a: Sequence[float] | Array, b: Sequence[float] | Array, buckets: Buckets) -> float:
    """The mean tau-b inside buckets, weighted by their pairs n(n-1)/2; NaN where no bucket has an order.

    Across buckets size alone makes tau high. What has no bucket (None), and buckets of one, are left out.
    """
    x, y = _alike(a, b)
    members = _members(buckets, len(x))
    found = [(tau(x[rows], y[rows]), len(rows) * (len(rows) - 1) / 2) for rows in members if len(rows) > 1]
    found = [(value, weight) for value, weight in found if np.isfinite(value)]
    return float(np.average([v for v, _ in found], weights=[w for _, w in found])) if found else float("nan")


def tau_ceiling(*seeds: Sequence[float] | Array, buckets: Buckets | None = None) -> float:
    """The mean tau-b over all pairs of stand-alone seeds of the same subnets: the most that noise lets anything reach.

    In buckets where they are given. Raises ValueError for fewer than two seeds.
    """
    if len(seeds) < 2:
        raise ValueError(f"a noise ceiling needs at least two seeds, not {len(seeds)}")
    pairs = list(itertools.combinations(seeds, 2))
    taus = [tau(a, b) if buckets is None else tau_in_buckets(a, b, buckets) for a, b in pairs]
    taus = [value for value in taus if np.isfinite(value)]
    return float(np.mean(taus)) if taus else float("nan")


def tau_interval(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
    *,
    buckets: Buckets | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean tau-b over pairs of orders (a pair a seed), and its hierarchical bootstrap interval.

    Resamples pairs, then subnets inside their bucket. Pairs that have no order do not count. With few subnets the
    interval is wide, as it should be; a subnet drawn twice is a tie with itself, which tau-b leaves out.
    """
    labels = [0.0] * len(pairs[0][0]) if buckets is None and pairs else list(buckets or ())
    both = [_alike(a, b) for a, b in pairs]
    both = [(x, y) for x, y in both if np.isfinite(tau_in_buckets(x, y, labels))]
    if not both:
        raise ValueError("no pair of orders has an order in any bucket, so there is no tau")
    drawn = _resample([_taus(x, y, _members(labels, len(x))) for x, y in both], draws, seed)
    estimate = float(np.mean([tau_in_buckets(x, y, labels) for x, y in both]))
    return _percentiles(estimate, drawn[np.isfinite(drawn)], level)


def checked(values: Sequence[float] | Array, what: str) -> Array:
    """The values as an array [N]. Raises ValueError where there are none or one is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{what}: expected a list of numbers with at least one in it")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {int((~np.isfinite(array)).sum())} of {len(array)} values are not finite numbers")
    return array


def _alike(a: Sequence[float] | Array, b: Sequence[float] | Array) -> tuple[Array, Array]:
    x, y = checked(a, "the first order"), checked(b, "the second order")
    if len(x) != len(y):
        raise ValueError(f"two orders of the same subnets must be equally long, not {len(x)} and {len(y)}")
    return x, y


def _members(buckets: Buckets, length: int) -> list[NDArray[np.intp]]:
    if len(buckets) != length:
        raise ValueError(f"{length} subnets need {length} buckets, not {len(buckets)}")
    labels = dict.fromkeys(bucket for bucket in buckets if bucket is not None)
    return [np.array([i for i, bucket in enumerate(buckets) if bucket == label]) for label in labels]


def _resample(inner: Sequence[_Inner], draws: int, seed: int) -> Array:
    """Means [draws] over seeds drawn with replacement; a seed's `inner` gives its statistic of resampled subnets."""
    if draws < 100:
        raise ValueError(f"a bootstrap of {draws} draws says nothing: take at least 100, better 2000")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(inner), size=(draws, len(inner)))
    found = np.empty(chosen.shape)
    for number, draw in enumerate(inner):
        here = chosen == number
        found[here] = draw(rng, int(here.sum()))
    return np.asarray(found.mean(axis=1))


def _one_sample(values: Array, statistic: Statistic) -> _Inner:
    def draw(rng: np.random.Generator, count: int) -> Array:
        return np.asarray(statistic(values[rng.integers(len(values), size=(count, len(values)))], axis=-1))

    return draw


def _two_samples(a: Array, b: Array, statistic: Statistic) -> _Inner:
    """Resampled differences. The shorter is drawn first, so that exchanging a and b changes nothing but the sign."""

    def draw(rng: np.random.Generator, count: int) -> Array:
        first, second = (a, b) if len(a) <= len(b) else (b, a)
        rows = rng.integers(len(first), size=(count, len(first)))
        others = rows if len(first) == len(second) else rng.integers(len(second), size=(count, len(second)))
        difference = np.asarray(statistic(first[rows], axis=-1) - statistic(second[others], axis=-1))
        return difference if first is a else -difference

    return draw


def _taus(a: Array, b: Array, members: Sequence[NDArray[np.intp]]) -> _Inner:
    """Resampled tau-b in buckets. With counts w: tau-b = w'(A*B)w / sqrt(w'|A|w w'|B|w) of the matrices of signs."""
    signs = [(np.sign(a[rows, None] - a[rows]), np.sign(b[rows, None] - b[rows])) for rows in members if len(rows) > 1]

    def draw(rng: np.random.Generator, count: int) -> Array:
        total, weights = np.zeros(count), np.zeros(count)
        for signs_a, signs_b in signs:
            size = len(signs_a)
            counts = rng.multinomial(size, np.full(size, 1 / size), size=count).astype(np.float64)
            numerator, ordered_a, ordered_b = (
                ((counts @ matrix) * counts).sum(axis=1)
                for matrix in (signs_a * signs_b, np.abs(signs_a), np.abs(signs_b))
            )
            below = np.sqrt(ordered_a * ordered_b)
            weight = np.where(below > 0, size * (size - 1) / 2, 0)
            total += weight * numerator / np.where(below > 0, below, 1)
            weights += weight
        return np.asarray(np.divide(total, weights, out=np.full(count, np.nan), where=weights > 0))

    return draw


def _percentiles(estimate: float, drawn: Array, level: float) -> Interval:
    """The order statistics that cut off (1 - level) / 2 of the draws at each end: exactly symmetric in the sign."""
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, as 0.95 does, not {level}")
    cut = round(len(drawn) * (1 - level) / 2)
    ordered = np.sort(drawn)
    return Interval(estimate=estimate, low=float(ordered[cut]), high=float(ordered[-1 - cut]), level=level)


def _t_test(values: Array, mean: float, alternative: str) -> float | None:
    """One p of a one-sample t test; of values without spread what the test tends to: 0, 1, or 1/2 where nothing is."""
    if len(values) < 2:
        return None
    if np.ptp(values) > ZERO_SPREAD * max(1.0, float(np.abs(values).max()), abs(mean)):
        return float(stats.ttest_1samp(values, mean, alternative=alternative).pvalue)
    distance = float(values.mean()) - mean
    if abs(distance) <= ZERO_SPREAD * max(1.0, abs(mean)):
        return 1.0 if alternative == "two-sided" else 0.5
    if alternative == "two-sided":
        return 0.0
    return float((distance > 0) != (alternative == "greater"))


def _judged(found: SeedComparison, alpha: float) -> SeedComparison:
    """The comparison with its verdict and the sentence for it."""
    found = replace(found, verdict=_verdict(found, alpha))
    return replace(found, sentence=_sentence(found))


def _verdict(found: SeedComparison, alpha: float) -> Verdict:
    p = found.p_difference if found.p_holm is None else found.p_holm
    if p is None or found.p_equivalence is None:
        return "cannot tell"
    if found.p_equivalence < alpha:
        return "equivalent"
    if p < alpha:
        return "better" if found.difference > 0 else "worse"
    return "cannot tell"


def _sentence(found: SeedComparison) -> str:
    a, b = found.names
    if found.verdict in ("better", "worse"):
        return f"{a} is {points(abs(found.difference))} {found.verdict} than {b} ({spread(found)})"
    lead = f"the difference is {points(found.difference, sign=True)} ({spread(found)})"
    if found.verdict == "equivalent":
        return f"{a} and {b} are equivalent within {found.margin:g} points: {lead}"
    return f"cannot tell whether {a} and {b} differ: {lead}"


def points(value: float, *, sign: bool = False, unit: bool = True) -> str:
    """A difference in words: one digit behind the point, two where it is below one."""
    digits = 1 if abs(value) >= 0.95 else 2
    rounded = round(value, digits) + 0.0  # never "-0.0"
    return f"{rounded:{'+' if sign else ''}.{digits}f}{' points' if unit else ''}"


def spread(found: SeedComparison) -> str:
    """What stands in brackets behind a difference: its interval, the number of seeds and the p of its verdict.

    The interval is Student's over seeds: 95%, and 90% behind an equivalence, which is what that test looks at.
    """
    if found.sd is None or found.p_difference is None or found.p_equivalence is None:
        low, high = points(found.bootstrap_low, unit=False), points(found.bootstrap_high, unit=False)
        return f"95% interval over subnets {low} to {high}, 1 seed"
    alike = found.verdict == "equivalent"
    half = _half_width(found.sd, found.seeds, 0.9 if alike else 0.95)
    low, high = (points(found.difference + way * half, unit=False) for way in (-1, 1))
    p, kind = found.p_difference if found.p_holm is None else found.p_holm, "" if found.p_holm is None else "corrected "
    shown = f"equivalence {probability(found.p_equivalence)}" if alike else f"{kind}{probability(p)}"
    return f"{90 if alike else 95}% interval {low} to {high}, {found.seeds} seeds, {shown}"


def probability(p: float) -> str:
    """A p value in words: two digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
