"""The search against going through a whole small space, and its bookkeeping: budgets, limits, equal numbers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import MakeNet

from trainonce.errors import UserError
from trainonce.search import (
    Limit,
    Problem,
    Resource,
    SearchSettings,
    feasible_subnet,
    search,
    search_result,
)
from trainonce.search.algorithm import _evenly
from trainonce.search.draws import FeasibleDraws
from trainonce.space import Architecture, derived_rng

QUICK: dict[str, Any] = {"population": 8, "generations": 3}


class Scorer:
    """Gives made-up scores, and counts what it is asked."""

    def __init__(self, truth: Callable[[Architecture], float]) -> None:
        self.truth = truth
        self.asked: list[Architecture] = []

    def __call__(self, archs: Sequence[Architecture]) -> dict[Architecture, float]:
        assert len(set(archs)) == len(archs)
        self.asked += archs
        return {arch: self.truth(arch) for arch in archs}


def exact_front(small: Any, problem: Problem) -> set[tuple[float, float]]:
    """Top-1 and MACs of what nothing within the limits beats, by comparing all with all."""
    inside = [a for a in small.everything() if all(limit.resource.of(a) <= limit.most for limit in problem.limits)]
    found = {(small.truth(arch), small.COST(arch).macs) for arch in inside}
    return {(t, m) for t, m in found if not any(ot >= t and om <= m and (ot, om) != (t, m) for ot, om in found)}


def front_of(entries: Sequence[Any]) -> set[tuple[float, float]]:
    return {(entry.top1, entry.macs) for entry in entries}


@pytest.mark.parametrize("limits", [{}, {"most_macs": 150_000}, {"most_params": 75, "most_macs": 220_000}])
def test_with_enough_scores_the_front_is_the_exact_one(small: Any, limits: dict[str, float]) -> None:
    problem = small.problem(**limits)
    score = Scorer(small.truth)
    evaluated = search(problem, {}, score, SearchSettings(scores=60, predictor=False, **QUICK))
    result = search_result(problem, {}, evaluated)
    inside = {arch for arch in small.everything() if problem.feasible(arch)}
    assert 0 < len(inside) <= 42
    assert set(evaluated.scores) == inside, "every subnet within the limits, and none beyond them"
    assert result.control is not None
    assert front_of(result.search.front) == exact_front(small, problem) == front_of(result.control.front)
    assert result.search.best.top1 == max(map(small.truth, inside))
    assert set(Counter(score.asked).values()) == {2}, "once by the search, once by the control"


@pytest.mark.parametrize("predictor", [False, True])
def test_the_control_gets_as_many_scores_and_limits_are_kept(small: Any, predictor: bool) -> None:
    problem = small.problem(most_macs=median(small.COST(arch).macs for arch in small.everything()))
    score = Scorer(small.truth)
    settings = SearchSettings(scores=14, predictor=predictor, **QUICK)
    evaluated = search(problem, {}, score, settings)
    assert evaluated.control is not None
    assert len(evaluated.scores) == len(evaluated.control) == 14
    assert len(score.asked) == 28
    assert all(small.COST(arch).macs <= problem.limits[0].most for arch in score.asked)
    assert sum(one.scored for one in evaluated.rounds) + 14 // (2 if predictor else 4) == 14
    if predictor:
        assert all("too few to judge by" in one.predictor.why for one in evaluated.rounds if one.predictor)


def test_the_same_seed_goes_the_same_way(small: Any) -> None:
    asked = []
    for seed in (0, 0, 1):
        score = Scorer(small.truth)
        search(small.problem(), {}, score, SearchSettings(scores=12, predictor=False, seed=seed, **QUICK))
        asked.append(score.asked)
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


def test_what_is_recorded_is_not_asked_again_and_counts_for_both(small: Any) -> None:
    best = max(small.everything(), key=small.truth)
    recorded = {best: small.truth(best)}
    score = Scorer(small.truth)
    evaluated = search(small.problem(), recorded, score, SearchSettings(scores=6, predictor=False, **QUICK))
    assert best not in score.asked
    result = search_result(small.problem(), recorded, evaluated)
    assert result.control is not None
    assert result.search.best.arch == result.control.best.arch == best
    assert result.search.best.known
    assert result.recorded == 1


def test_all_scored_within_the_limits(small: Any) -> None:
    """Of either side, and known before; what does not keep the limits has no part in it."""
    everything = list(small.everything())
    problem = small.problem(most_macs=sorted(small.COST(arch).macs for arch in everything)[len(everything) // 2])
    inside = [arch for arch in everything if problem.feasible(arch)]
    beyond = next(arch for arch in everything if not problem.feasible(arch))
    evaluated = search(problem, {}, Scorer(small.truth), SearchSettings(scores=4, predictor=False, **QUICK))
    sides = replace(evaluated, scores={inside[0]: 1.0}, control={inside[1]: 2.0, inside[0]: 1.0})
    result = search_result(problem, {inside[2]: 3.0, beyond: 4.0}, sides)
    assert sorted(result.scored, key=str) == sorted(inside[:3], key=str)


def test_a_predictor_finds_more_than_chance(make_net: Any) -> None:
    """Accuracy that is a sum over choices: by a predictor the search comes much further than random search."""
    net = make_net()
    rng = derived_rng("worth")
    worth = {(c.name, v): rng.gauss(0, 1) for c in net.space.choices for v in c.values}
    macs = Resource(name="macs", of=lambda arch: net.cost(arch).macs)
    most = (net.cost(net.space.smallest()).macs + net.cost(net.space.largest()).macs) / 2
    problem = Problem(cost=net.cost, limits=(Limit(resource=macs, most=most),), minimised=(macs,))
    score = Scorer(lambda arch: 50 + sum(worth[pair] for pair in arch.pairs))
    evaluated = search(problem, {}, score, SearchSettings(scores=60, rounds=2, population=16, generations=4))
    result = search_result(problem, {}, evaluated)
    assert [one.predictor is not None and one.predictor.used for one in evaluated.rounds] == [True, True]
    assert evaluated.finalists is not None
    assert result.control is not None
    assert result.search.evaluations == result.control.evaluations == 60
    assert result.search.best.top1 > result.control.best.top1 + 1
    assert result.search.hypervolume > result.control.hypervolume


@given(size=st.integers(0, 9), count=st.integers(0, 12))
def test_even_places_have_both_ends(size: int, count: int) -> None:
    places = list(range(100, 100 + size))
    chosen = _evenly(places, count)
    assert len(chosen) == len(set(chosen)) == min(size, count)
    assert chosen == sorted(chosen)
    if min(size, count) > 1:
        assert (chosen[0], chosen[-1]) == (places[0], places[-1])


def test_a_budget_that_nothing_keeps_says_what_the_smallest_needs(small: Any) -> None:
    """The smallest subnet is one block with kernel 3 and expand ratio 3: 1000 * 9 * 3 MACs."""
    with pytest.raises(UserError, match=r"has at most 0\.02 M MACs; the smallest has 0\.027 M MACs \(d1\.k3e3\)"):
        feasible_subnet(small.problem(most_macs=20_000))
    with pytest.raises(UserError, match="has at most 0 M MACs"):
        search(small.problem(most_macs=0), {}, Scorer(small.truth), SearchSettings())


def test_a_feasible_subnet_is_found_where_the_smallest_is_none(small: Any) -> None:
    """A latency in which kernel 3 is slow: changing choices one by one leads to kernel 5."""
    slow = Resource(name="latency", of=lambda arch: sum(9 if arch[n] == 3 else 1 for n in arch if n.endswith("kernel")))
    problem = Problem(cost=small.COST, limits=(Limit(resource=slow, most=2),), minimised=(slow,))
    assert feasible_subnet(problem)["s.b1.kernel"] == 5


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("spread", ["uniform", "stratified", "both"])
def test_draws_are_distinct_within_the_limits_and_end(small: Any, spread: Any, even: bool) -> None:
    """Another limit than MACs, which is drawn for by rejection."""
    problem = small.problem(most_params=55)
    inside = {arch for arch in small.everything() if small.COST(arch).params <= 55}
    draws = FeasibleDraws(problem, feasible_subnet(problem), derived_rng(0), spread=spread, even=even)
    found = draws.draw(100, ())
    assert len(set(found)) == len(found)
    assert set(found) == inside
    assert draws.draw(1, inside) == []


def test_two_draws_of_four_are_even(make_net: MakeNet) -> None:
    """Of a space in which next to no uniform subnet is: one whose kernels are all 3 or all 5."""
    net = make_net()
    most = net.cost(net.space.largest()).macs
    macs = Resource(name="macs", of=lambda arch: net.cost(arch).macs)
    problem = Problem(cost=net.cost, limits=(Limit(resource=macs, most=0.8 * most),), minimised=(macs,))

    def one_kernel(even: bool) -> int:
        draws = FeasibleDraws(problem, net.space.smallest(), derived_rng(2), spread="uniform", even=even)
        found = [draws.draw(1, ())[0] for _ in range(200)]
        assert all(net.cost(arch).macs <= 0.8 * most for arch in found)
        return sum(len({value for name, value in arch.pairs if "kernel" in name}) == 1 for arch in found)

    other = replace(problem, limits=(Limit(resource=replace(macs, name="latency"), most=0.8 * most),))
    draws = FeasibleDraws(other, net.space.smallest(), derived_rng(3), spread="uniform", even=True)
    found = [draws.draw(1, ())[0] for _ in range(60)]
    assert found.count(net.space.smallest()) < 3, "draws beyond another limit fall back on uniform ones"
    assert one_kernel(even=False) < 20
    assert 40 < one_kernel(even=True) < 110  # of the 100 even ones those whose share is not within 0.15 of a half


def test_draws_stay_uniform_where_most_are_beyond_a_limit(make_net: MakeNet) -> None:
    """One in twenty keeps the limit: draws reach the feasible subnets of most MACs as often as plain rejection does."""
    net = make_net()
    worth = {choice.name: 1.618**number for number, choice in enumerate(net.space.choices)}
    other = Resource(name="latency", of=lambda arch: sum(worth[n] for n, v in arch.pairs if "kernel" in n and v == 5))
    rng = derived_rng(0, "rejection")
    plain = sorted((net.space.sample(rng) for _ in range(4000)), key=other.of)[:200]
    upper_fifth = sorted(net.cost(arch).macs for arch in plain)[160]
    problem = Problem(cost=net.cost, limits=(Limit(resource=other, most=other.of(plain[-1])),), minimised=(other,))
    draws = FeasibleDraws(problem, feasible_subnet(problem), derived_rng(1), spread="uniform")
    drawn = [draws.draw(1, ())[0] for _ in range(200)]
    assert 24 <= sum(net.cost(arch).macs >= upper_fifth for arch in drawn) <= 60  # 40, give or take


def test_without_the_extra_it_says_what_to_install(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'trainonce\[search\]'"):
        search(small.problem(), {}, Scorer(small.truth), SearchSettings(scores=4))
