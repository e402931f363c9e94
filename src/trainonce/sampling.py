"""Sampling subnets by their MACs: exactly, without bias, however rare they are.

Uniform sampling reaches the ends of the MACs range about never (5e-6 for the 4 M bucket at 32 x 32), and
forcing choices to reach them is biased. `MacsSampler` counts, by dynamic programming over the choices,
how much probability lies at each (binned) number of MACs below every partial architecture, draws from
that, and rejects the few draws that binning let in. What remains is the uniform distribution, given
that the MACs lie in the window.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trainonce.cost.macs import CostModel
from trainonce.cost.partial import PartialCosts, Settled
from trainonce.errors import UserError
from trainonce.recipes import CYCLED, slot_named
from trainonce.space import Architecture, Choice, Over, SearchSpace, derived_rng

Floats = NDArray[np.float64]

BINS = 4096
TRIES = 2_000
CELLS = 200


class MacsSampler:
    """Draws architectures of `cost.space` whose MACs lie in a window.

    `over` says what is uniform, given the window: the values of each choice, or the distinct subnets. Raises
    `UserError` as `PartialCosts`, where costs join too many choices.
    """

    def __init__(self, cost: CostModel, *, over: Over = "choices") -> None:
        self.cost = cost
        self.over: Over = over
        partial = PartialCosts(cost)
        self._steps, self._constant = partial.steps, partial.constant
        self.min_macs, self.max_macs = self._range()
        self._width = max(1.0, (self.max_macs - self.min_macs) / BINS)
        self._holds_some: dict[int, bool] = {}
        """Of cells: a memory of what follows from the cell alone."""
        self._after: dict[tuple[int, int], tuple[int, Floats]] = {}

    def holds(self, low: float, high: float) -> bool:
        """Whether a subnet with `low` <= MACs <= `high` is found."""
        try:
            self.sample(derived_rng("holds"), low, high)
        except UserError:
            return False
        return True

    def below(self, macs: float, *, share: float) -> tuple[float, float]:
        """A window that holds a subnet, from a share of a number of MACs up to it: from less, where subnets are few.

        `macs` is at least what the smallest has.
        """
        high = min(macs, self.max_macs)
        low = max(self.min_macs, share * high)
        while low > self.min_macs and not self.holds(low, high):
            low = max(self.min_macs, share * low)
        return low, high

    def sample(self, rng: random.Random, low: float, high: float) -> Architecture:
        """Draw one architecture with `low` <= MACs <= `high`.

        Raises `UserError` where there is none, naming the range of the space.
        """
        first, last = self._bins(low, high)
        reaches = max(low, self.min_macs) <= min(high, self.max_macs)
        if reaches and self._mass(*self._suffix(0, 0), first, last) > 0:
            for _ in range(TRIES):
                arch = self._draw(rng, first, last)
                if low <= self.cost(arch).macs <= high:
                    return arch
        raise UserError(
            f"no subnet with {low / 1e6:.3f} to {high / 1e6:.3f} M MACs was found; "
            f"the space has {self.min_macs / 1e6:.3f} to {self.max_macs / 1e6:.3f} M"
        )

    def near(self, rng: random.Random, macs: float, *, count: int = 1) -> list[Architecture]:
        """Draw architectures from the smallest window around `macs` that holds any.

        The window starts at 1% of the space's range to either side and doubles.
        """
        half = max(1.0, (self.max_macs - self.min_macs) / 100)
        while True:
            try:
                return [self.sample(rng, macs - half, macs + half) for _ in range(count)]
            except UserError:
                if macs - half <= self.min_macs and macs + half >= self.max_macs:
                    raise
                half *= 2

    def stratified(self, rng: random.Random) -> Architecture:
        """Draw one architecture so that MACs are uniform over the space's range, by cells of half a percent of it.

        A cell without any subnet gives one near it. The idea of ShiftNAS (2023): remove the bias of uniform
        choices towards the middle.
        """
        cell = rng.randrange(CELLS)
        size = (self.max_macs - self.min_macs) / CELLS
        low = self.min_macs + cell * size
        if self._cell_holds_some(cell, low, low + size):
            with suppress(UserError):
                return self.sample(rng, low, low + size)
        return self.near(rng, low + size / 2)[0]

    def _cell_holds_some(self, cell: int, low: float, high: float) -> bool:
        """Whether a subnet is found in a cell, with a generator of the cell's own.

        The search for one in an empty cell takes thousands of draws. Made with the caller's generator and remembered,
        it would let what a step draws depend on which cells were visited before.
        """
        if cell not in self._holds_some:
            try:
                self.sample(derived_rng(0, "cell", cell), low, high)
            except UserError:
                self._holds_some[cell] = False
            else:
                self._holds_some[cell] = True
        return self._holds_some[cell]

    def probability(self, low: float, high: float) -> float:
        """The share of all draws (see `over`) with MACs between, within the error of binning."""
        offset, mass = self._suffix(0, 0)
        first = round((low - self._constant) / self._width)
        last = round((high - self._constant) / self._width)
        return self._mass(offset, mass, first, last) / float(mass.sum())

    # The dynamic programme: below each state of a partial architecture stands the probability mass by bin.

    def _weight(self, steps: Sequence[Settled]) -> float:
        return 1.0 / len(steps) if self.over == "choices" else 1.0

    def _range(self) -> tuple[int, int]:
        bounds = [(0, 0)]
        for layer in reversed(self._steps):
            ends = [[(macs + bounds[n][0], macs + bounds[n][1]) for _, macs, n in steps] for steps in layer]
            bounds = [(min(low for low, _ in each), max(high for _, high in each)) for each in ends]
        [(low, high)] = bounds
        return low + self._constant, high + self._constant

    def _suffix(self, i: int, state: int) -> tuple[int, Floats]:
        """The first bin and the mass by bin of everything from choice i on."""
        if (i, state) not in self._after:
            if i == len(self._steps):
                return 0, np.ones(1)
            parts, weight = [], self._weight(self._steps[i][state])
            for _, macs, following in self._steps[i][state]:
                offset, below = self._suffix(i + 1, following)
                parts.append((offset + self._bin(macs), weight * below))
            start = min(offset for offset, _ in parts)
            mass = np.zeros(max(offset + len(part) for offset, part in parts) - start)
            for offset, part in parts:
                mass[offset - start : offset - start + len(part)] += part
            self._after[i, state] = start, mass
        return self._after[i, state]

    def _draw(self, rng: random.Random, first: int, last: int) -> Architecture:
        state, pairs = 0, []
        for i, choice in enumerate(self.cost.space.choices):
            steps, masses = self._steps[i][state], []
            weight = self._weight(steps)
            for _, macs, following in steps:
                bin_ = self._bin(macs)
                masses.append(weight * self._mass(*self._suffix(i + 1, following), first - bin_, last - bin_))
            value, macs, state = rng.choices(steps, masses)[0]
            first, last = first - self._bin(macs), last - self._bin(macs)
            if value is not None:
                pairs.append((choice.name, value))
        return Architecture(tuple(pairs))

    def _bin(self, macs: int) -> int:
        return round(macs / self._width)

    def _bins(self, low: float, high: float) -> tuple[int, int]:
        """The bins in which an architecture between `low` and `high` can fall: each term rounds by up to a half."""
        rounding = len(self.cost.terms) // 2 + 1
        return (
            int((low - self._constant) // self._width) - rounding,
            int((high - self._constant) // self._width) + 1 + rounding,
        )

    @staticmethod
    def _mass(offset: int, mass: Floats, first: int, last: int) -> float:
        """The mass in the bins `first` to `last`, both included. No differences of sums: tails are tiny."""
        return float(mass[max(0, first - offset) : max(0, last - offset + 1)].sum())


def even_subnets(cost: CostModel, rng: random.Random, low: float, high: float, count: int) -> list[Architecture]:
    """Up to `count` distinct even subnets (`SearchSpace.sample_even`) with `low` <= MACs <= `high`.

    Fewer where many draws in a row find no new one.
    """
    found: dict[Architecture, None] = {}
    misses = 0
    while len(found) < count and misses < TRIES:
        arch = cost.space.sample_even(rng)
        if arch in found or not low <= cost(arch).macs <= high:
            misses += 1
        else:
            found[arch], misses = None, 0
    return list(found)


class SubnetDraws:
    """Draws the subnets of one step of a phase from the phase's part of the space.

    `slots` are their names (`trainonce.recipes.SLOTS`), `cycle` what the slot "cycle" goes round. Raises `UserError`
    for an entry of `cycle` that is no architecture of that part, and for a slot of one's own that cannot be imported.
    """

    def __init__(self, slots: Sequence[str], cost: CostModel, cycle: Sequence[str] = ()) -> None:
        self.slots = tuple(map(slot_named, slots))
        self.space = cost.space
        self.cycle = tuple(entry if entry in CYCLED else self._parsed(entry) for entry in cycle)
        self._at = {kind: slots.count(kind) for kind in ("fair", "cycle")}
        by_macs = any(slot.by_macs for slot in self.slots) or "stratified" in cycle
        self._by_macs = MacsSampler(cost) if by_macs else None

    def _parsed(self, entry: str) -> Architecture:
        try:
            return self.space.parse(entry)
        except UserError as error:
            raise UserError(f"a cycle goes round architectures or {' or '.join(CYCLED)}: {error}") from error

    def draw(self, rng: random.Random, turn: int) -> list[list[Architecture]]:
        """For each slot the architectures it chooses from: `Slot.candidates` of them.

        `turn` counts the draws of the phase.
        """
        fair = iter(self._fair(rng))
        cycled = iter(range(turn * self._at["cycle"], (turn + 1) * self._at["cycle"]))
        draw = _Draw(self.space, self._by_macs, rng, turn, fair, (self.cycle[i % len(self.cycle)] for i in cycled))
        return [slot.draw(draw) for slot in self.slots]

    def _fair(self, rng: random.Random) -> list[Architecture]:
        """As many architectures as there are fair slots: slot j takes entry j of each choice's fresh order.

        A choice with fewer open values than slots goes round them again.
        """
        orders: dict[tuple[str, tuple[int, ...]], list[int]] = {}

        def pick(j: int, choice: Choice, values: tuple[int, ...]) -> int:
            order = orders.setdefault((choice.name, values), rng.sample(values, len(values)))
            return order[j % len(order)]

        return [self.space.build(partial(pick, j)) for j in range(self._at["fair"])]


@dataclass
class _Draw:
    """One turn: see `trainonce.recipes.Draw`."""

    space: SearchSpace
    by_macs: MacsSampler | None
    rng: random.Random
    turn: int
    in_order: Iterator[Architecture]
    entries: Iterator[Architecture | str]

    def stratified(self) -> Architecture:
        assert self.by_macs is not None, "the slot says `by_macs`"
        return self.by_macs.stratified(self.rng)

    def near_uniform(self, count: int) -> list[Architecture]:
        assert self.by_macs is not None, "the slot says `by_macs`"
        macs = self.by_macs.cost(self.space.sample(self.rng)).macs  # the prior of the paper: MACs of uniform subnets
        return self.by_macs.near(self.rng, macs, count=count)

    def fair(self) -> Architecture:
        return next(self.in_order)

    def cycled(self) -> Architecture:
        entry = next(self.entries)
        if isinstance(entry, Architecture):
            return entry
        return slot_named(entry).draw(self)[0]
