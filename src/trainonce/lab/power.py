"""How many seeds a claim of equivalence takes: the power of two one-sided t tests over paired seeds."""

import math

import numpy as np
from scipy import stats

POWER, ALPHA = 0.8, 0.05
NODES_N, WEIGHTS_N = np.polynomial.legendre.leggauss(64)


def equivalence_power(seeds: int, sd: float, margin: float, *, alpha: float = ALPHA) -> float:
    """How often two one-sided t tests (TOST) over so many seeds find a difference within ±margin if there is none.

    `sd` is the standard deviation of the paired differences between seeds, in the margin's unit, over 0. At least two
    seeds. Exact for normal differences: for each sample variance, of a chi-squared distribution with S - 1 degrees of
    freedom, the chance that the mean lies within margin - t · s / √S (Schuirmann 1987), integrated over its quantiles.
    """
    freedom, error = seeds - 1, sd / math.sqrt(seeds)
    t = float(stats.t.isf(alpha, freedom))
    most = float(stats.chi2.cdf(freedom * (margin / (t * error)) ** 2, freedom))  # beyond, nothing is found
    sample_sd = np.sqrt(stats.chi2.ppf(most * (NODES_N + 1) / 2, freedom) / freedom)
    within = 2 * stats.norm.cdf(margin / error - t * sample_sd) - 1
    return float(most * (WEIGHTS_N @ within) / 2)


def seeds_needed(sd: float, margin: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """The fewest seeds with which TOST finds equivalence within ±margin in `power` of studies of no difference.

    Raises ValueError for a margin that is not above zero.
    """
    if not margin > 0:
        raise ValueError(f"the margin of equivalence must be above zero, not {margin}")
    if sd <= 0:
        return 2
    enough = 2
    while equivalence_power(enough, sd, margin, alpha=alpha) < power:
        enough *= 2
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        if equivalence_power(middle, sd, margin, alpha=alpha) < power:
            few = middle
        else:
            enough = middle
    return enough
