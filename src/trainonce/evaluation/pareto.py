"""Which of many points are on the Pareto front, for any number of numbers that are all to be small."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, ...]


def nondominated(points: Sequence[Point]) -> list[int]:
    """The places of the points that no other is at least as good as in all and better in one; of equals the first."""
    if points and len(points[0]) == 2:
        return _by_sweep(points)
    array = np.asarray(points, dtype=np.float64)
    return [i for i in range(len(points)) if not _beaten(array, i)]


def _by_sweep(points: Sequence[Point]) -> list[int]:
    """The same for pairs: by the rising first number, those whose second is lower than all before."""
    found, lowest = list[int](), math.inf
    for place in sorted(range(len(points)), key=lambda i: points[i]):
        if points[place][1] < lowest:
            lowest = points[place][1]
            found.append(place)
    return sorted(found)


def _beaten(points: NDArray[np.float64], i: int) -> bool:
    no_worse = (points <= points[i]).all(axis=1)
    better = (points < points[i]).any(axis=1)
    equal_before = no_worse & ~better
    equal_before[i:] = False
    return bool((no_worse & better).any() or equal_before.any())
