"""The search: a few random subnets, then rounds of evolution, each by a predictor where it is good enough.

A true score is dear (a subnet is taken out, recalibrated and run over the validation images), so they are what is
counted. A round with a predictor evolves on predicted top-1 and gives the most promising subnets true scores; a round
without one evolves on true scores. The control is random search with as many true scores. Both start from the same
recorded scores, and everything follows from those, the settings and the seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from pydantic import Field

from trainonce.search.draws import FeasibleDraws, Spread
from trainonce.search.evolution import evolve, require_optuna
from trainonce.search.front import by_fronts
from trainonce.search.predictor import LEAST_SUBNETS, Accuracy, Predictor, PredictorReport, accuracy_of, learn
from trainonce.search.problem import Problem, Scores, feasible_subnet
from trainonce.settings import Record, Settings, Whole, refuse_subclass
from trainonce.space import Architecture, derived_rng, derived_seed

TrueScores = Callable[[Sequence[Architecture]], Scores]
"""Gives the true top-1, in percent, of every distinct subnet asked for."""

SEEDING = 400
"""Random subnets from which a predictor chooses the better part of the first population."""
STALE = 5
"""Generations of true scores without a new subnet until random ones are taken instead."""
LEAST_POPULATION = 8
MOST_SCORES = 1_000_000
"""The most true scores that a search may ask for."""


@final
class SearchSettings(Settings):
    """How long a search looks, and how."""

    scores: int = Field(100, ge=1, le=MOST_SCORES)
    """True scores that the search may ask for beyond those recorded; the control gets as many."""
    rounds: int = Field(4, ge=1)
    """Rounds of evolution, between which the predictor learns anew."""
    population: int = Field(50, ge=LEAST_POPULATION)
    """Subnets in a generation of evolution."""
    generations: int = Field(20, ge=1)
    """Generations on predicted top-1 in a round."""
    predictor: bool = True
    """Whether a predictor is tried at all."""
    control: bool = True
    """Whether random search is done beside it."""
    spread: Spread = "both"
    """How the random subnets lie below the limits: of the search's beginning and of the control."""
    even: bool = False
    """Whether half of the search's random subnets are even ones; the control's never are."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random in a search."""


class Round(Record):
    """One round of evolution."""

    scored: Whole
    """True scores asked for."""
    predictor: PredictorReport | None
    """None where no predictor was tried."""


@dataclass(frozen=True, kw_only=True)
class SearchScores:
    """What a search asked for: top-1 of subnets that were not recorded before, all within the limits."""

    scores: Scores
    control: Scores | None
    """Random search's; None where it was not done."""
    rounds: Sequence[Round]
    finalists: Accuracy | None
    """How well predictions agreed with the true scores that they led to; None where no predictor was used."""


def search(problem: Problem, recorded: Scores, true_scores: TrueScores, settings: SearchSettings) -> SearchScores:
    """Look for the subnets of high top-1 that need little, within the limits.

    `recorded` are true scores that are known already; the predictor learns from them, and evolution starts from the
    best. Raises `UserError` where no subnet keeps the limits, or without the extra; whatever `true_scores` raises.
    """
    require_optuna()
    feasible = feasible_subnet(problem)
    refuse_subclass(settings, SearchSettings)
    looking = _Search(problem, recorded, true_scores, settings, feasible)
    looking.begin()
    rounds = [looking.round(number) for number in range(settings.rounds)]
    control = None
    if settings.control:
        rng = derived_rng(settings.seed, "search", "control")
        draws = FeasibleDraws(problem, feasible, rng, spread=settings.spread)
        control = dict(true_scores(draws.draw(len(looking.own), recorded)))
    return SearchScores(
        scores=looking.own,
        control=control,
        rounds=[one for one in rounds if one.scored],
        finalists=looking.finalists(),
    )


class _Search:
    """What is known while a search is under way."""

    def __init__(
        self,
        problem: Problem,
        recorded: Scores,
        true_scores: TrueScores,
        settings: SearchSettings,
        feasible: Architecture,
    ) -> None:
        self.problem = problem
        self.true_scores = true_scores
        self.settings = settings
        self.known = dict(recorded)
        self.own: dict[Architecture, float] = {}
        self.predictions: dict[Architecture, float] = {}
        rng = derived_rng(settings.seed, "search", "begin")
        self.draws = FeasibleDraws(problem, feasible, rng, spread=settings.spread, even=settings.even)

    @property
    def left(self) -> int:
        return self.settings.scores - len(self.own)

    def ask(self, archs: Sequence[Architecture]) -> None:
        """Get true scores."""
        found = self.true_scores(archs) if archs else {}
        self.own |= found
        self.known |= found

    def begin(self) -> None:
        """The smallest subnet, where a front ends, and random ones, to start from and to learn from.

        A quarter of the scores, more where little is recorded within the limits.
        """
        budget, recorded = self.settings.scores, sum(map(self.problem.feasible, self.known))
        wanted = max(budget // 4, LEAST_SUBNETS - recorded if self.settings.predictor else 0)
        wanted = max(1, min(wanted, budget // 2))
        first = [self.draws.feasible] if self.draws.feasible not in self.known else []
        self.ask(first + self.draws.draw(wanted - len(first), {*self.known, *first}))

    def round(self, number: int) -> Round:
        """One round; the last uses up what is left."""
        before = len(self.own)
        quota = -(-self.left // (self.settings.rounds - number))
        predictor, report = None, None
        if quota > 0:
            seed = derived_seed(self.settings.seed, "search", "round", number)
            if self.settings.predictor:
                predictor, report = learn(self.problem.cost, self.known, seed=seed, feasible=self.problem.feasible)
            if predictor is not None:
                self._by_predictor(predictor, quota, seed)
            else:
                self._by_true_scores(quota, seed)
            missing = quota - (len(self.own) - before)
            self.ask(self.draws.draw(missing, self.known))
        return Round(scored=len(self.own) - before, predictor=report)

    def finalists(self) -> Accuracy | None:
        if not self.predictions:
            return None
        archs = list(self.predictions)
        return accuracy_of([self.predictions[arch] for arch in archs], [self.own[arch] for arch in archs])

    def _best(self, scores: Scores, count: int) -> list[Architecture]:
        """The feasible subnets that no others beat, then those that no others but these beat, and so on.

        Of the last front that counts, evenly over its range.
        """
        archs = [arch for arch in sorted(scores, key=str) if self.problem.feasible(arch)]
        points = [self.problem.objectives(arch, scores[arch]) for arch in archs]
        best: list[Architecture] = []
        for front in by_fronts(points, count):
            best += [archs[i] for i in _evenly(front, count - len(best))]
        return best

    def _by_predictor(self, predictor: Predictor, quota: int, seed: int) -> None:
        size = self.settings.population
        drawn = self.draws.draw(SEEDING, self.known)
        guessed = dict(zip(drawn, predictor(drawn), strict=True))
        first = self._best(self.known, size // 2)
        first += self._best(guessed, size - len(first))
        seen = evolve(
            self.problem,
            _at_least(first, LEAST_POPULATION),
            lambda archs: dict(zip(archs, predictor(archs), strict=True)),
            generations=self.settings.generations,
            seed=seed,
        )
        new = {arch: top1 for arch, top1 in (guessed | seen).items() if arch not in self.known}
        chosen = self._promising(new, quota)
        self.predictions |= {arch: new[arch] for arch in chosen}
        self.ask(chosen)

    def _promising(self, predicted: Scores, count: int) -> list[Architecture]:
        """Half of them those of highest top-1 predicted; the others evenly from the predicted fronts."""
        by_top1 = sorted(predicted, key=lambda arch: (-predicted[arch], str(arch)))
        chosen = by_top1[: -(-count // 2)]
        rest = {arch: top1 for arch, top1 in predicted.items() if arch not in set(chosen)}
        missing = count - len(chosen)
        archs = sorted(rest, key=str)
        points = [self.problem.objectives(arch, rest[arch]) for arch in archs]
        for front in by_fronts(points, missing):
            chosen += [archs[i] for i in _evenly(front, count - len(chosen))]
        return chosen

    def _by_true_scores(self, quota: int, seed: int) -> None:
        end = len(self.own) + quota
        stale = 0

        def top_of(archs: Sequence[Architecture]) -> Scores:
            nonlocal stale
            new = [arch for arch in archs if arch not in self.known][: end - len(self.own)]
            stale = 0 if new else stale + 1
            self.ask(new)
            return {arch: self.known[arch] for arch in archs if arch in self.known}

        size = max(LEAST_POPULATION, min(self.settings.population, quota))
        first = self._best(self.known, size)
        first += self.draws.draw(size - len(first), self.known)
        evolve(
            self.problem,
            _at_least(first, LEAST_POPULATION),
            top_of,
            generations=quota + STALE + 1,
            seed=seed,
            should_end=lambda: len(self.own) >= end or stale >= STALE,
        )


def _evenly(places: Sequence[int], count: int) -> list[int]:
    """At most `count` of some places, the first and the last among them, evenly spread."""
    if count >= len(places):
        return list(places)
    if count < 2:
        return list(places[:count])
    return [places[round(i * (len(places) - 1) / (count - 1))] for i in range(count)]


def _at_least(archs: list[Architecture], count: int) -> list[Architecture]:
    """The subnets, gone round again where there are fewer."""
    return [archs[i % len(archs)] for i in range(max(count, len(archs)))]
