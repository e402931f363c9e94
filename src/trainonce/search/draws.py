"""Random subnets that keep the limits: what the control is made of, and what a search begins with."""

import random
from collections.abc import Container
from typing import Literal

from trainonce.errors import UserError
from trainonce.sampling import MacsSampler
from trainonce.search.problem import Problem
from trainonce.space import Architecture

Spread = Literal["uniform", "stratified", "both"]
"""`uniform`: choices are uniform, given that the limits are kept, so that most subnets lie near the limit.
`stratified`: uniform within a limit on MACs that is itself drawn uniformly, so that MACs spread over the whole range
below. `both`: by turns, so that neither the best subnet nor the rest of a front is found by search alone."""

TRIED = 300
"""Draws that say how many of those below some MACs keep the other limits."""
KEPT = 0.03
"""The part that must keep them, lest nearly all is drawn in vain."""
EVEN_TRIED = 50
"""Even subnets that are drawn until one has about as many MACs as are wanted; else any is taken."""
EVEN_NEAR = 0.8
"""The least part of the MACs wanted that it has."""
NARROWEST = 0.02
"""The part of the range of MACs that a drawn limit leaves at least."""
REPEATS = 200
"""Draws without a new subnet until there is taken to be none."""


class FeasibleDraws:
    """Draws distinct random subnets within the limits of a problem.

    A limit on MACs is drawn from exactly (`MacsSampler`), others by rejection. Where less than `KEPT` would be kept,
    the MACs drawn are lowered beforehand, towards those of `feasible`, a subnet that keeps all limits. With `even`,
    two draws of four are even subnets (`SearchSpace.sample_even`), where such are found within the limits.
    """

    def __init__(
        self,
        problem: Problem,
        feasible: Architecture,
        rng: random.Random,
        *,
        spread: Spread = "both",
        even: bool = False,
    ) -> None:
        self.problem = problem
        self.rng = rng
        self.spread = spread
        self.even = even
        self.sampler = MacsSampler(problem.cost)
        self.feasible = feasible
        self._turn = 0
        self._most = self._worth_drawing()

    def draw(self, count: int, taken: Container[Architecture]) -> list[Architecture]:
        """At most `count` distinct subnets that are not in `taken`; fewer where no more were found."""
        found: dict[Architecture, None] = {}
        misses = 0
        while len(found) < count and misses < REPEATS:
            arch = self._one()
            if arch in taken or arch in found:
                misses += 1
            else:
                found[arch] = None
                misses = 0
        return list(found)

    def _worth_drawing(self) -> float:
        """The most MACs to draw: those that the limits allow, halved towards the feasible subnet's as need be."""
        limits = [limit.most for limit in self.problem.limits if limit.resource.name == "macs"]
        least = float(self.problem.cost(self.feasible).macs)
        most = max(least, min([self.sampler.max_macs, *limits]))
        if len(limits) == len(self.problem.limits):
            return most
        while most - least > NARROWEST * least:
            kept = sum(self.problem.feasible(self._drawn(most)) for _ in range(TRIED))
            if kept >= KEPT * TRIED:
                break
            most = (most + least) / 2
        return most

    def _one(self) -> Architecture:
        stratified = self.spread == "stratified" or (self.spread == "both" and self._turn % 2 == 1)
        even = self.even and self._turn % 4 < 2
        self._turn += 1
        low, high = float(self.sampler.min_macs), self._most

        def most() -> float:
            return self.rng.uniform(low + NARROWEST * (high - low), high) if stratified else high

        if even and (found := self._drawn_even(most())) is not None:
            return found
        for _ in range(TRIED):
            arch = self._drawn(most())
            if self.problem.feasible(arch):
                return arch
        return self.feasible

    def _drawn_even(self, most: float) -> Architecture | None:
        for _ in range(EVEN_TRIED):
            arch = self.problem.cost.space.sample_even(self.rng)
            if EVEN_NEAR * most <= self.problem.cost(arch).macs <= most and self.problem.feasible(arch):
                return arch
        return None

    def _drawn(self, most: float) -> Architecture:
        try:
            return self.sampler.sample(self.rng, float(self.sampler.min_macs), most)
        except UserError:  # a window so narrow that hardly a draw falls into it
            return self.feasible
