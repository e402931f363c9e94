"""Fronts and hypervolume against counting by brute force."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce.evaluation.pareto import nondominated
from trainonce.search.front import by_fronts, hypervolume

SIZE = 4


def points(dimensions: int) -> st.SearchStrategy[list[tuple[int, ...]]]:
    return st.lists(st.tuples(*[st.integers(0, SIZE)] * dimensions), max_size=12)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


MANY = st.integers(1, 4).flatmap(points)


@settings(deadline=None)
@given(found=MANY)
def test_the_front_is_what_nothing_dominates(found: list[tuple[int, ...]]) -> None:
    front = [found[i] for i in nondominated(found)]
    assert len(front) == len(set(front)), "equals stand once"
    assert set(front) == {p for p in found if not any(dominates(q, p) for q in found)}
    assert all(found.index(found[i]) == i for i in nondominated(found)), "of equals the first"


@settings(deadline=None)
@given(found=MANY, enough=st.none() | st.integers(1, 8))
def test_fronts_are_peeled_off_one_by_one(found: list[tuple[int, ...]], enough: int | None) -> None:
    left = list(range(len(found)))
    for front in by_fronts(found, enough):
        assert {found[i] for i in front} == {
            found[i] for i in left if not any(dominates(found[j], found[i]) for j in left)
        }
        left = [i for i in left if i not in front]
    assert (not left) if enough is None else len(found) - len(left) >= min(enough, len(found))


@settings(deadline=None)
@given(found=MANY)
def test_hypervolume_counts_the_cells_that_are_dominated(found: list[tuple[int, ...]]) -> None:
    """On whole numbers the volume is the number of unit cells whose lower corner some point is at or below."""
    if not found:
        assert hypervolume([], (1.0, 1.0)) == 0
        return
    cells = product(range(SIZE), repeat=len(found[0]))
    dominated = sum(any(all(a <= c for a, c in zip(p, cell, strict=True)) for p in found) for cell in cells)
    assert hypervolume(found, (float(SIZE),) * len(found[0])) == dominated
