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

TRIES = 60
"""Draws beyond a limit until fewer MACs are tried."""
NARROWEST = 0.02
"""The part of the range of MACs that a drawn limit leaves at least."""
REPEATS = 200
"""Draws without a new subnet until there is taken to be none."""


class FeasibleDraws:
    """Draws distinct random subnets within the limits of a problem.

    A limit on MACs is drawn from exactly (`MacsSampler`), others by rejection; where nearly all is rejected, the MACs
    drawn are lowered towards those of `feasible`, a subnet that keeps all limits.
    """

    def __init__(
        self, problem: Problem, feasible: Architecture, rng: random.Random, *, spread: Spread = "both"
    ) -> None:
        self.problem = problem
        self.rng = rng
        self.spread = spread
        self.sampler = MacsSampler(problem.cost)
        self.feasible = feasible
        self._least = float(problem.cost(feasible).macs)
        limits = [limit.most for limit in problem.limits if limit.measure.name == "macs"]
        self._most = max(self._least, min([self.sampler.max_macs, *limits]))
        self._turn = 0

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

    def _one(self) -> Architecture:
        stratified = self.spread == "stratified" or (self.spread == "both" and self._turn % 2 == 1)
        self._turn += 1
        for _ in range(TRIES):
            arch = self._drawn(stratified)
            if self.problem.feasible(arch):
                return arch
        self._most = (self._most + self._least) / 2
        return self.feasible

    def _drawn(self, stratified: bool) -> Architecture:
        low, high = float(self.sampler.min_macs), self._most
        if stratified:
            high = self.rng.uniform(low + NARROWEST * (high - low), high)
        try:
            return self.sampler.sample(self.rng, low, high)
        except UserError:  # a window so narrow that hardly a draw falls into it
            return self.feasible
