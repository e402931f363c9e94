"""True scores, each made once: looked up in the run directory, else made and recorded in search.jsonl.

A line of search.jsonl is a line of population.jsonl with two more keys: `search`, which names the search by what it
follows from, and `knew`, how many lines of population.jsonl and of search.jsonl there were when it began. So the same
search, run again after a kill, starts from the same knowledge, and goes the same way with its scores looked up.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainonce.errors import UserError
from trainonce.evaluation.evaluator import Evaluator
from trainonce.evaluation.population import score_key, score_subnets
from trainonce.models import Supernet
from trainonce.parallel.fan_out import LOCAL
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import SubnetScore
from trainonce.search.problem import Scores
from trainonce.settings import JsonObject
from trainonce.space import Architecture, SearchSpace


class SearchStopped(Exception):
    """Someone asked to stop; what is scored is recorded."""


@dataclass(frozen=True, kw_only=True)
class SearchStart:
    """What a search starts from."""

    name: str
    """Twelve hexadecimal digits of what the search follows from."""
    knew: tuple[int, int]
    """Lines of population.jsonl and of search.jsonl that it knows."""
    scores: Scores
    """True scores among them that count for the weights, split and calibration at hand."""


def name_of(step: int, plan: JsonObject) -> str:
    """The name of the search of a plan over a step's weights."""
    return hashlib.blake2b(json.dumps([step, plan], sort_keys=True).encode(), digest_size=6).hexdigest()


def first_line(searched: Sequence[SubnetScore], name: str) -> SubnetScore | None:
    """The first line of search.jsonl that the search of that name recorded; None where it has not begun."""
    return next((line for line in searched if line.search == name), None)


def start_of(run: RunDirectory, evaluator: Evaluator, step: int, space: SearchSpace, plan: JsonObject) -> SearchStart:
    """What the search of this plan starts from: what it started from before where it began already, else all there is.

    The plan is everything that the search follows from beside what is recorded. Raises `UserError` for a damaged line.
    """
    name = name_of(step, plan)
    population, searched = run.population(), run.searched()
    knew = (len(population), len(searched))
    first = first_line(searched, name)
    if first is not None:
        if first.knew is None:
            raise UserError(f"{run.search_file}, line {searched.index(first) + 1}: its 'knew' is missing")
        knew = (first.knew[0], first.knew[1])
    key = score_key(evaluator, step)
    lines = [line for line in (*population[: knew[0]], *searched[: knew[1]]) if key.has(line)]
    scores = {arch: line.top1 for arch, line in _by_arch(lines, space, run).items()}
    return SearchStart(name=name, knew=knew, scores=scores)


def _by_arch(lines: Sequence[SubnetScore], space: SearchSpace, run: RunDirectory) -> dict[Architecture, SubnetScore]:
    found: dict[Architecture, SubnetScore] = {}
    for line in lines:
        try:
            found.setdefault(space.parse(line.arch), line)
        except UserError as error:
            raise UserError(f"{run.path} has a score of a subnet that its supernet does not have: {error}") from error
    return found


class ScoreCache:
    """Gives true scores; those that are recorded nowhere are made and recorded in search.jsonl."""

    def __init__(
        self,
        run: RunDirectory,
        net: Supernet,
        step: int,
        evaluator: Evaluator,
        start: SearchStart,
        *,
        workers: int | None = None,
        cluster: str = LOCAL,
        on_progress: Callable[[int, SubnetScore], None] = lambda _asked, _line: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run = run
        self.net = net
        self.step = step
        self.evaluator = evaluator
        self.start = start
        self.workers = workers
        self.cluster = cluster
        self.on_progress = on_progress
        self.should_stop = should_stop
        self.asked = 0
        """Scores given so far."""
        self.made = 0
        """Those of them that were recorded nowhere."""
        population, known = run.population(), start.knew[0]
        # What the search has scored goes before what was scored anew since it began.
        lines = [*population[:known], *run.searched(), *population[known:]]
        key = score_key(evaluator, step)
        self.lines = _by_arch([line for line in lines if key.has(line)], net.space, run)

    def __call__(self, archs: Sequence[Architecture]) -> Scores:
        """Top-1 in percent of distinct subnets. Raises `SearchStopped` where `should_stop` says so."""
        missing = [arch for arch in archs if arch not in self.lines]
        self.asked += len(archs) - len(missing)

        def record(line: SubnetScore) -> None:
            whole = line.model_copy(update={"search": self.start.name, "knew": list(self.start.knew)})
            self.run.append_searched(whole)
            self.lines[self.net.space.parse(line.arch)] = whole
            self.asked += 1
            self.made += 1
            self.on_progress(self.asked, line)

        done = score_subnets(
            self.net,
            self.step,
            self.evaluator,
            missing,
            on_line=record,
            workers=self.workers,
            cluster=self.cluster,
            should_stop=self.should_stop,
        )
        if not done:
            raise SearchStopped
        return {arch: float(self.lines[arch].top1) for arch in archs}
