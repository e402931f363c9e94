"""Fronts behind the Pareto front, and hypervolume, for any number of numbers that are all to be small."""

from collections.abc import Sequence

from trainonce.evaluation.pareto import Point, nondominated


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
