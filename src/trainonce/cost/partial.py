"""What is still to be told of an architecture's MACs when its choices are made one after the other.

Of the choices made so far, those to come can tell only which values are open to them, and what each costs together with
them. Partial architectures that are alike in both are one *state*; a dynamic programme over states counts and draws
architectures by their MACs (`trainonce.sampling`). Where layers read the maps of all layers before them, as in a
DenseNet, later costs depend on a sum of widths: then there are as many states as there are sums, not combinations.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainonce.cost.macs import CostModel, CostTerm
from trainonce.errors import UserError
from trainonce.space import Choice

Integers = NDArray[np.int64]

MOST_STATES = 20_000
"""The most states before one choice."""
MOST_VALUES = 100_000
"""The most values that one term may have."""
CANNOT = "subnets of this space cannot be drawn by their MACs"


class Settled(NamedTuple):
    """One value that a choice can have in a state."""

    value: int | None
    """None where the choice does not exist."""
    macs: int
    """Of the terms of the costs that it settles."""
    state: int
    """The state after it."""


class PartialCosts:
    """The states of the partial architectures of `cost.space`, and what leads from one to another.

    `steps[i][state]` are the values that choice i can have there, in their order. The only state before choice 0, and
    the only one after the last choice, is number 0. `constant` are MACs that follow from no choice. Raises `UserError`
    where there are more than `MOST_STATES` states before one choice, or a term may have more than `MOST_VALUES` values.
    """

    def __init__(self, cost: CostModel) -> None:
        self._space, self.choices = cost.space, cost.space.choices
        self._order = {choice.name: i for i, choice in enumerate(self.choices)}
        self._last_asked = {c.parent: i for i, c in enumerate(self.choices) if c.parent is not None}
        """Of choices whose values the states hold: the last choice that asks for them."""
        self._starting: list[dict[tuple[str, ...], Integers]] = [{} for _ in self.choices]
        """Of the terms whose first choice but for the leader is the i-th: what they cost by slot of their choices, in a
        row, or in one for each value of the leader."""
        self.constant = 0
        self._leader = self._led_by(cost.terms)
        for term in cost.terms:
            if term.choices:
                self._add(term)
            else:
                self.constant += term.cost().macs
        self.steps: list[list[list[Settled]]] = []
        layer = _Layer((), {}, np.zeros((1, 0), dtype=np.int64))
        for i, choice in enumerate(self.choices):
            layer = self._after(i, choice, layer)

    def _slots(self, choice: Choice) -> tuple[int | None, ...]:
        """What a choice can be at all."""
        return (*choice.values, None) if choice.parent is not None else choice.values

    def _led_by(self, terms: Sequence[CostTerm]) -> Choice | None:
        """The first choice, where most terms of several choices ask for it, as they do for a resolution: its value is
        in each state then, and not what each choice to come costs with it."""
        joining = [term.choices for term in terms if len(term.choices) > 1]
        first = self.choices[0] if self.choices else None
        return first if first and 2 * sum(first.name in names for names in joining) > len(joining) else None

    def _add(self, term: CostTerm) -> None:
        names, table = self._table(term)
        leader = None if self._leader is None else self._leader.name
        if leader == names[0]:
            self._last_asked[leader] = max(self._last_asked.get(leader, -1), self._order[names[-1]])
        if leader == names[0] and len(names) > 1:
            names = names[1:]
        else:
            table = table[None]
        if table.any():
            those = self._starting[self._order[names[0]]]
            those[names] = those.get(names, 0) + table.reshape(len(table), -1)

    def _table(self, term: CostTerm) -> tuple[tuple[str, ...], Integers]:
        """The MACs of a term by the slots of its choices, in the order of the space; 0 for what no subnet has."""
        names = tuple(sorted(term.choices, key=self._order.__getitem__))
        slots = [self._slots(self.choices[self._order[name]]) for name in names]
        shape = [len(each) for each in slots]
        if math.prod(shape) > MOST_VALUES:
            raise UserError(
                f"{CANNOT}: {names[0]} and {len(names) - 1} more choices cost together, in more than {MOST_VALUES:,} "
                "ways; restrict the space"
            )
        table = np.zeros(shape, dtype=np.int64)
        done: set[tuple[int, ...]] = set()
        for known, _ in self._space.draws_of(names):
            at = tuple(each.index(known.get(name)) for name, each in zip(names, slots, strict=True))
            if at not in done:
                done.add(at)
                table[at] = term.cost(*(known.get(name) for name in term.choices)).macs
        return names, table

    def _after(self, i: int, choice: Choice, before: "_Layer") -> "_Layer":
        """The states after choice i, from those before it; fills `steps`."""
        slots = self._slots(choice)
        held = tuple(name for name in (*before.held, choice.name) if self._last_asked.get(name, -1) > i)
        ahead = {names for names in before.places if names[0] != choice.name}
        ahead |= {names[1:] for names in before.places if names[0] == choice.name}
        ahead |= {names[1:] for names in self._starting[i]}
        places, width = {}, len(held)
        for names in sorted(ahead - {()}):
            size = math.prod(len(self._slots(self.choices[self._order[name]])) for name in names)
            places[names] = slice(width, width + size)
            width += size
        rows, macs, whose = [], [], []
        for slot in range(len(slots)):
            here = np.flatnonzero(self._open(choice, slot, before))
            following, settled = np.zeros((len(here), width), dtype=np.int64), np.zeros(len(here), dtype=np.int64)
            for at, name in enumerate(held):
                following[:, at] = slot if name == choice.name else before.column(name)[here]
            for names, tables in self._unsettled(i, before._replace(states=before.states[here])):
                rest, part = names, tables
                if names[0] == choice.name:
                    size = tables.shape[1] // len(slots)
                    rest, part = names[1:], tables[:, slot * size : (slot + 1) * size]
                if rest:
                    following[:, places[rest]] += part
                else:
                    settled += part[:, 0]
            rows.append(following)
            macs.append(settled)
            whose.append(here)
        states, number = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        if len(states) > MOST_STATES:
            raise UserError(
                f"{CANNOT}: what is chosen up to {choice.name} makes {len(states):,} differences to the costs of what "
                "comes after; restrict the space"
            )
        steps: list[list[Settled]] = [[] for _ in before.states]
        numbers = iter(number.reshape(-1).tolist())
        for value, settled, here in zip(slots, macs, whose, strict=True):
            for state, cost in zip(here.tolist(), settled.tolist(), strict=True):
                steps[state].append(Settled(value, cost, next(numbers)))
        self.steps.append(steps)
        return _Layer(held, places, states)

    def _unsettled(self, i: int, before: "_Layer") -> Iterator[tuple[tuple[str, ...], Integers]]:
        """What is not settled before choice i, and terms that begin with it: choices, and MACs [states, slots]."""
        for names, place in before.places.items():
            yield names, before.states[:, place]
        for names, table in self._starting[i].items():
            if self._leader is not None and len(table) > 1:
                yield names, table[before.column(self._leader.name)]
            else:
                yield names, table

    def _open(self, choice: Choice, slot: int, before: "_Layer") -> NDArray[np.bool_]:
        """Of each state, whether the choice can have that slot."""
        if choice.parent is None:
            return np.ones(len(before.states), dtype=np.bool_)
        of_parent = self._slots(self.choices[self._order[choice.parent]])
        value = self._slots(choice)[slot]
        opened = np.array([value in (choice.open_values(theirs) or (None,)) for theirs in of_parent])
        found: NDArray[np.bool_] = opened[before.column(choice.parent)]
        return found


class _Layer(NamedTuple):
    """The states before a choice."""

    held: tuple[str, ...]
    """Choices made whose values are asked for later: of each the slot, in the first columns."""
    places: dict[tuple[str, ...], slice]
    """Of choices to come that cost together: the columns with their MACs by slot, as far as is known."""
    states: Integers
    """[states, columns], all rows different."""

    def column(self, name: str) -> Integers:
        """Of each state the slot of a choice that is held."""
        return self.states[:, self.held.index(name)]
