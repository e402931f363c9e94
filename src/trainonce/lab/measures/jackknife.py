"""The jackknife: how far a figure made from batches would be another with other batches.

For an average it is the standard error of the mean; for what is made of averages, as a cosine of averaged products is,
it takes what each batch does to the figure.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def jackknife_error(without_N: Floats) -> Floats:
    """The standard error of a figure, from its N values [N, ...] each without one of the N batches.

    sqrt((N - 1) / N · Σ (θ_i - mean θ)²) (Efron and Tibshirani 1993, chapter 11). NaN for fewer than two batches, and
    where the figure does not exist without one of them.
    """
    count = len(without_N)
    if count < 2:
        return np.full(without_N.shape[1:], np.nan)
    return np.asarray(np.sqrt((count - 1) * without_N.var(axis=0)))


def means_without_one(values_N: Floats) -> Floats:
    """The N means [N, ...] of values [N, ...] without one each; NaN for a single one."""
    count = len(values_N)
    if count < 2:
        return np.full(values_N.shape, np.nan)
    return np.asarray((values_N.sum(axis=0) - values_N) / (count - 1))
