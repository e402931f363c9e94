"""Pareto fronts and their hypervolume, for any number of numbers that are all to be small."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, ...]


def nondominated(points: Sequence[Point]) -> list[int]:
    """The places of the points that no other is at least as good as in all and better in one; of equals the first."""
    array = np.asarray(points, dtype=np.float64)
    return [i for i in range(len(points)) if not _beaten(array, i)]


def _beaten(points: NDArray[np.float64], i: int) -> bool:
    no_worse = (points <= points[i]).all(axis=1)
    better = (points < points[i]).any(axis=1)
    equal_before = no_worse & ~better
    equal_before[i:] = False
    return bool((no_worse & better).any() or equal_before.any())


def by_fronts(points: Sequence[Point], enough: int | None = None) -> list[list[int]]:
    """The places of all points: the front, the front of what is left without it, and so on; of each, by rising value.

    Ends with the front that brings them to `enough`.
    """
    left = list(range(len(points)))
    fronts: list[list[int]] = []
    while left and (enough is None or sum(map(len, fronts)) < enough):
        front = [left[place] for place in nondominated([points[i] for i in left])]
        fronts.append(sorted(front, key=lambda i: points[i]))
        left = sorted(set(left) - set(front))
    return fronts


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that the points dominate, up to a reference point (Zitzler and Thiele 1999), by slices.

    Points that are not better than the reference in every number add nothing.
    """
    inside = [point for point in points if all(a < b for a, b in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - min(point[0] for point in inside))
    ordered = sorted(inside, key=lambda point: point[-1])
    volume = 0.0
    for number, point in enumerate(ordered):
        until = ordered[number + 1][-1] if number + 1 < len(ordered) else reference[-1]
        if until > point[-1]:
            slab = hypervolume([p[:-1] for p in ordered[: number + 1]], reference[:-1])
            volume += (until - point[-1]) * slab
    return float(volume)
