"""What a search came to, and its control: fronts, the best subnet, hypervolume; how front.json has them."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainonce.evaluation.pareto import Point, nondominated
from trainonce.search.algorithm import SearchScores
from trainonce.search.front import hypervolume
from trainonce.search.problem import Problem, Scores
from trainonce.search.recorded import FrontEntry, FrontSide
from trainonce.space import Architecture


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A subnet with its true top-1 in percent and what it needs of each resource."""

    arch: Architecture
    top1: float
    macs: int
    params: int
    resources: dict[str, float]
    known: bool
    """Whether its score was recorded before the search."""

    def recorded(self) -> FrontEntry:
        """The entry as front.json has it."""
        return FrontEntry(
            arch=str(self.arch),
            id=self.arch.id,
            top1=self.top1,
            macs=self.macs,
            params=self.params,
            measures=self.resources,
            known=self.known,
        )


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one way of looking found, among its own scores and those recorded before."""

    evaluations: int
    """True scores that it asked for."""
    front: list[Entry]
    """By falling top-1; the first is the best within the limits."""
    hypervolume: float
    """The part, 0 to 1, of the box between the worst and the best seen that the front dominates."""

    @property
    def best(self) -> Entry:
        """The subnet of highest top-1."""
        return self.front[0]

    def recorded(self) -> FrontSide:
        """The side as front.json has it."""
        return FrontSide(
            evaluations=self.evaluations,
            best=self.best.recorded(),
            front=[entry.recorded() for entry in self.front],
            hypervolume=self.hypervolume,
        )


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The search's side and the control's, with what both knew before."""

    recorded: int
    """True scores known before, in or out of the limits."""
    search: Side
    control: Side | None
    scores: SearchScores
    scored: list[Architecture]
    """All within the limits that have a true score, whether known before, or by either side."""


def search_result(problem: Problem, recorded: Scores, scores: SearchScores) -> SearchResult:
    """Sum up a search. Both sides are measured against the same worst and best."""
    known = {arch: top1 for arch, top1 in recorded.items() if problem.feasible(arch)}
    sides = [known | dict(scores.scores)]
    sides += [] if scores.control is None else [known | dict(scores.control)]
    points = [problem.objectives(arch, top1) for side in sides for arch, top1 in side.items()]
    box = (tuple(map(min, zip(*points, strict=True))), tuple(map(max, zip(*points, strict=True))))
    found = _side(problem, known, scores.scores, box)
    control = None if scores.control is None else _side(problem, known, scores.control, box)
    scored = sorted({arch for side in sides for arch in side}, key=str)
    return SearchResult(recorded=len(recorded), search=found, control=control, scores=scores, scored=scored)


def _side(problem: Problem, known: Scores, own: Scores, box: tuple[Point, Point]) -> Side:
    scores = dict(known) | dict(own)
    archs = sorted(scores, key=str)
    points = [problem.objectives(arch, scores[arch]) for arch in archs]
    front = sorted(nondominated(points), key=lambda i: points[i])
    return Side(
        evaluations=len(own),
        front=[_entry(problem, archs[i], scores[archs[i]], archs[i] in known) for i in front],
        hypervolume=hypervolume(scaled([points[i] for i in front], box), (1.0,) * len(points[0])),
    )


def scaled(points: Sequence[Point], box: tuple[Point, Point]) -> list[Point]:
    """Points with the least of each number at 0 and the most at 1; a number that is always the same is 0."""
    low, high = box
    return [
        tuple((value - a) / (b - a) if b > a else 0.0 for value, a, b in zip(point, low, high, strict=True))
        for point in points
    ]


def _entry(problem: Problem, arch: Architecture, top1: float, known: bool) -> Entry:
    cost = problem.cost(arch)
    return Entry(arch=arch, top1=top1, macs=cost.macs, params=cost.params, resources=problem.values(arch), known=known)
