"""Costs of partial architectures against the enumeration of small spaces, in which choices depend on others."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce.cost import partial
from trainonce.cost.macs import Cost, CostModel, CostTerm
from trainonce.errors import UserError
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture, Choice, SearchSpace, derived_rng


def chances(space: SearchSpace) -> dict[Architecture, float]:
    """All architectures, with the probability that uniform choices give them: plainly, choice by choice."""
    found = {}
    for arch in space.architectures():
        chance = 1.0
        for choice in space.choices:
            if choice.name in arch:
                chance /= len(choice.open_values(arch.get(choice.parent) if choice.parent else None))
        found[arch] = chance
    return found


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    choices: list[Choice] = []
    for i in range(draw(st.integers(1, 5))):
        values = tuple(range(1, 1 + draw(st.integers(1, 3))))
        parent = draw(st.none() | st.sampled_from(choices)) if choices else None
        if parent is None:
            choices.append(Choice(name=f"c{i}", values=values))
            continue
        some = st.lists(st.sampled_from(values), min_size=1, unique=True).map(lambda v: tuple(sorted(v)))
        allowed = draw(st.dictionaries(st.sampled_from(parent.values), some))
        choices.append(Choice(name=f"c{i}", values=values, parent=parent.name, allowed=allowed))
    return SearchSpace(tuple(choices))


@st.composite
def models(draw: st.DrawFn) -> CostModel:
    """Costs of terms of any choices, in any order, that fail where they are asked for what no subnet has."""
    space = draw(spaces())
    archs = list(space.architectures())
    names = [choice.name for choice in space.choices]
    terms = []
    for number in range(draw(st.integers(1, 6))):
        of = tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=3)))
        there = sorted({tuple(arch.get(name) for name in of) for arch in archs}, key=str)
        macs = {values: draw(st.integers(0, 40)) for values in there}
        terms.append(CostTerm(of, _looked_up(macs, number)))
    return CostModel(space, tuple(terms))


def _looked_up(macs: dict[Any, int], number: int) -> Callable[..., Cost]:
    def cost(*values: int | None) -> Cost:
        assert values in macs, f"term {number}: no subnet has {values}"
        return Cost(macs[values], 0)

    return cost


@settings(max_examples=200, deadline=None)
@given(models())
def test_probabilities_are_those_of_the_enumeration(cost: CostModel) -> None:
    by_macs: dict[int, float] = {}
    for arch, chance in chances(cost.space).items():
        by_macs[cost(arch).macs] = by_macs.get(cost(arch).macs, 0.0) + chance
    sampler = MacsSampler(cost)
    assert (sampler.min_macs, sampler.max_macs) == (min(by_macs), max(by_macs))
    for macs, chance in by_macs.items():  # a bin is one multiply-accumulate here
        assert sampler.probability(macs, macs) == pytest.approx(chance)
        assert cost(sampler.sample(derived_rng(macs), macs, macs)).macs == macs
    for before, after in pairwise(sorted(by_macs)):
        if after - before > 1:
            assert sampler.probability(before + 1, after - 1) == 0


def test_what_a_first_choice_is_asked_for_is_held_no_longer_than_that() -> None:
    """Four values that the terms of two widths ask for; those of the other widths are told by their sum."""
    names = ("side", *(f"w{i}" for i in range(8)))
    space = SearchSpace(tuple(Choice(name=name, values=(1, 2, 3, 4)) for name in names))
    led = [CostTerm(("side", f"w{i}"), lambda side, width: Cost(side * width, 0)) for i in range(2)]
    late = [CostTerm((f"w{i}", "w7"), lambda width, last: Cost(width * last, 0)) for i in range(6, 7)]
    steps = partial.PartialCosts(CostModel(space, (*led, *late))).steps
    assert [len(states) for states in steps] == [1, 4, 4, 1, 1, 1, 1, 1, 4]


def test_a_term_of_too_many_choices_is_refused_at_once() -> None:
    space = SearchSpace(tuple(Choice(name=f"c{i}", values=(1, 2, 3, 4)) for i in range(70)))
    term = CostTerm(tuple(choice.name for choice in space.choices), lambda *values: Cost(sum(values), 0))
    with pytest.raises(UserError, match="cannot be drawn by their MACs: c0 and 69 more choices cost together"):
        MacsSampler(CostModel(space, (term,)))


def test_a_space_of_one_subnet() -> None:
    sampler = MacsSampler(CostModel(SearchSpace(()), (CostTerm((), lambda: Cost(5, 0)),)))
    assert sampler.sample(derived_rng(0), 5, 5) == Architecture(())
